"""Prepares a recipe's inputs: data in parts, the base model, prompts, scorers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emorl_core.files.hashes import folder_hash
from emorl_core.text.tokenizer import Tokenizer
from training.config import RecipeError
from training.data.parts import split_sources
from training.data.prompts import Prompt, encode_prompts
from training.data.records import DataError, Record, RecordSet
from training.data.sources import load_records
from training.data.splits import check_disjoint, split_by_prompt
from training.data.wording import template_or_chat
from training.pipeline.invocation import check_invoked, invocation_of
from training.recipe.recipe import Recipe

# Keys that do not change the trained adapters.
NOT_TRAINING = {"name", "compute", "profiles", "default_profile", "evaluation"}


@dataclass(frozen=True, slots=True)
class Data:
    """The recipe's data, split into parts by dialogue and prompt."""

    sources: tuple[RecordSet, ...]
    parts: Mapping[str, tuple[Record, ...]]

    def summary(self) -> dict[str, Any]:
        """Sizes and hashes, for the report in the bundle."""
        return {
            "sources": [
                {"name": s.name, "rows": s.rows, "records": len(s), "skipped": s.skipped, "sha256": s.sha256 or None}
                for s in self.sources
            ],
            "parts": {
                name: {"records": len(records), "prompts": len(distinct(records)), "sha256": records_hash(records)}
                for name, records in self.parts.items()
            },
        }


def load_data(recipe: Recipe, folder: Path) -> Data:
    """Read and split. `folder`: where the recipe's relative paths start. Raises `DataError`."""
    settings = recipe.data
    sources = tuple(
        load_records(source, base=folder, where=f"data.sources.{number}")
        for number, source in enumerate(settings.sources)
    )
    found = [source.records for source in sources]
    if settings.max_prompts is not None:
        kept = set(distinct([record for own in found for record in own])[: settings.max_prompts])
        found = [tuple(record for record in own if record.prompt in kept) for own in found]
    shares = {str(part): share for part, share in settings.splits.items()}
    if settings.split_by is None:
        return Data(sources, split_sources(found, settings.seed, shares))
    records = [record for own in found for record in own]
    return Data(sources, _split_by_column(records, settings.split_by, settings.seed, shares))


def check_passes(recipe: Recipe, data: Data) -> None:
    """Raises `RecipeError` if a pass over the training prompts would have no step."""
    prompts, rl = len(distinct(data.parts["train"])), recipe.rl
    if rl.drop_last and prompts < rl.prompts_per_step:
        raise RecipeError(
            f"rl.drop_last is true and {prompts} training prompts fill no step of {rl.prompts_per_step}; lower "
            "rl.prompts_per_step",
            param="rl.drop_last",
        )


def _split_by_column(
    records: Sequence[Record], column: str, seed: int, fractions: Mapping[str, float]
) -> dict[str, tuple[Record, ...]]:
    for record in records:
        if not record.extras.get(column):
            known = ", ".join(record.extras) or "none"
            raise DataError(
                f"data.split_by: {record.where or 'a record'} has no {column!r}; it has {known}", param="data.split_by"
            )
    values = dict.fromkeys(record.extras[column] for record in records)
    split = split_by_prompt([Record(value) for value in values], seed, fractions)
    part_of = {record.prompt: part for part, own in split.items() for record in own}
    parts = {part: tuple(r for r in records if part_of[r.extras[column]] == part) for part in split}
    check_disjoint(parts)
    return parts


def distinct(records: Sequence[Record]) -> list[str]:
    """The prompts, each once, in order of first appearance."""
    return list(dict.fromkeys(record.prompt for record in records))


def records_hash(records: Sequence[Record]) -> str:
    """SHA-256 over prompts, replies and references in their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.prompt, record.response, record.level, record.references]).encode() + b"\n")
    return digest.hexdigest()


def fingerprint(recipe: Recipe, data: Data, base: Path) -> dict[str, str]:
    """Identifies the run, so that a checkpoint of another recipe, data or base is not resumed."""
    settings = recipe.model_dump(mode="json", exclude=NOT_TRAINING)
    return {
        "recipe": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "data": records_hash([*data.parts["train"], *data.parts["validation"]]),
        "base": folder_hash(base),
    }


@dataclass(frozen=True, slots=True)
class Encoded:
    """Prompts of the two parts that a run uses, and how many were truncated. `invocation`: the tokens from which
    adapters act, if they do not act everywhere."""

    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    cut: int
    invocation: tuple[int, ...] | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(
            len(ids) for prompt in (*self.train, *self.validation) for ids in (prompt.source, prompt.gradient_source)
        )


def encode(recipe: Recipe, data: Data, tokenizer: Tokenizer, task: str) -> Encoded:
    """Tokenise the prompts of a run. task: PEFT's task type of the base's family.

    Raises `RecipeError` if a part is too small for the settings, or if adapters cannot start at the reply.
    """
    encoder = template_or_chat(recipe.prompt_template, recipe.chat, tokenizer)
    invocation = invocation_of(recipe, tokenizer, task)
    parts = []
    cut = 0
    for name in ("train", "validation"):
        prompts, longer = encode_prompts(
            data.parts[name],
            encoder,
            max_source_tokens=recipe.max_source_tokens,
            gradient_source_tokens=recipe.rl.gradient_source_tokens,
        )
        parts.append(prompts)
        cut += longer
    train, validation = parts
    if invocation is not None:
        check_invoked(invocation, (*train, *validation))
    if len(validation) < 2:
        raise RecipeError(
            f"data.splits.validation holds {len(validation)} prompts; allowed: from 2", param="data.splits"
        )
    return Encoded(train, validation[: recipe.rl.validation_prompts], cut, invocation)
