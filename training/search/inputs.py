"""The inputs of a search: search prompts, held-out prompts, scorers; from a recipe or from files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emorl_core.bundles.stored_scorers import learned
from emorl_core.files.documents import read_json
from emorl_core.files.reading import Missing, Unreadable
from emorl_core.files.text_files import read_lines
from emorl_core.scorers import Checked, Context, build_scorer
from emorl_core.scorers.words import prompt_key
from training.data.clusters import split_by_cluster
from training.data.records import DataError, Record, clean, one_per_prompt
from training.data.sources import load_records
from training.data.splits import check_disjoint
from training.recipe.recipe import Recipe, parse_recipe
from training.search.strategies.grid import SearchError

SEARCH, HELD_OUT = "search", "held_out"


@dataclass(frozen=True, slots=True)
class Inputs:
    """One record per prompt. `specs`: each scorer's specification; `context` and `where`: further arguments of
    `build_scorers`; `notes`: messages, one line each."""

    search: tuple[Record, ...]
    held_out: tuple[Record, ...]
    scorers: Mapping[str, Checked]
    specs: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    context: Context = field(default_factory=Context)
    where: str = "scorer {}"
    corpus: bool = False  # whether scorers may learn from the records

    @property
    def storable(self) -> dict[str, Any]:
        """Specifications of the scorers that a bundle may contain: those that learned nothing from the data."""
        return {name: spec for name, spec in self.specs.items() if not (self.corpus and learned(spec))}


def build_scorers(specs: Mapping[str, Any], context: Context, where: str) -> dict[str, Checked]:
    """where: a scorer's place in the user's input, with {} for its name. Raises `ScorerError`."""
    return {name: build_scorer(spec, context, where=where.format(name)) for name, spec in specs.items()}


def from_recipe(recipe: Recipe, folder: Path, *, device: str = "auto") -> Inputs:
    """Search on the recipe's validation prompts; its test prompts are held out (without any, half of the validation
    prompts). `folder`: where relative paths start. Raises `DataError`, `RecipeError`, `ScorerError`."""
    from training.pipeline.prepare import load_data

    data = load_data(recipe, folder)
    search, held_out = data.parts["validation"], data.parts.get("test", ())
    notes = [source.summary() for source in data.sources]
    if not held_out:
        search, held_out = _halves(search, recipe.data.seed, 0.5)
        notes.append("the recipe has no test prompts; half of its validation prompts are held out")
    specs = {name: objective.scorer for name, objective in recipe.objectives.items()}
    context, where = Context(device, folder, data.parts["train"]), "objectives.{}.scorer"
    return Inputs(
        tuple(one_per_prompt([*search])),
        tuple(one_per_prompt([*held_out])),
        build_scorers(specs, context, where),
        specs,
        tuple(notes),
        context,
        where,
        corpus=True,
    )


def stored_recipe(bundle: Path) -> Recipe:
    """The recipe that `emorl train` stored in a bundle. Raises `SearchError`, `RecipeError`."""
    from training.pipeline.bundle_out import REPORT_FILE

    path = bundle / REPORT_FILE
    try:
        recipe = read_json(path)["recipe"]
    except Missing:
        raise SearchError(
            f"the bundle holds no {REPORT_FILE}; give --recipe, or --prompts and --scorer", param="recipe"
        ) from None
    except (Unreadable, KeyError, TypeError):
        raise SearchError(
            f"{path}: holds no recipe; give --recipe, or --prompts and --scorer", param="recipe"
        ) from None
    return parse_recipe(recipe, where=REPORT_FILE)


def from_files(
    prompts: Path,
    specs: Mapping[str, Any],
    *,
    held_out: Path | None = None,
    fraction: float = 0.5,
    seed: int = 0,
    device: str = "auto",
) -> Inputs:
    """Prompts of a `.txt` (one per line), `.jsonl` or `.csv` file (column `prompt`), and scorers by name.

    Without a file of held-out prompts a `fraction` of the prompts is held out, chosen by `seed`.

    Raises `DataError`, `ScorerError`, `SearchError`.
    """
    if not specs:
        raise SearchError("no scorer is named; give --scorer NAME=KIND, or a recipe", param="scorer")
    if held_out is None and not 0 < fraction < 1:
        raise SearchError(f"held-out is {fraction:g}; allowed: a share between 0 and 1", param="held_out")
    context, where = Context(device), "scorer {}"
    scorers = build_scorers(specs, context, where)
    found = read_prompts(prompts)
    search, held = (found, read_prompts(held_out)) if held_out is not None else _halves(found, seed, fraction)
    check_disjoint({SEARCH: search, HELD_OUT: held})
    return Inputs(tuple(search), tuple(held), scorers, dict(specs), (), context, where)


def read_prompts(path: Path) -> tuple[Record, ...]:
    """One record per distinct prompt. Raises `DataError`."""
    kind = path.suffix.lower().removeprefix(".")
    if kind in ("jsonl", "csv"):
        return tuple(one_per_prompt([*load_records({"kind": kind, "path": str(path)})]))
    try:
        lines = read_lines(path)
    except Unreadable as error:
        raise DataError(error.message, param="prompts") from None
    records = [Record(clean(line), where=f"{path.name}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not records:
        raise DataError(f"{path}: holds no prompt; write one per line", param="prompts")
    return tuple(one_per_prompt(records))


def chosen(inputs: Inputs, fits: Callable[[str], bool], *, search: int, held_out: int, seed: int) -> Inputs:
    """At most this many prompts of each part, drawn by `seed` independently of their order in the data. Prompts that
    are too long for the model are left out and counted in the notes. Raises `SearchError` if too few are left."""
    notes = list(inputs.notes)
    parts: dict[str, tuple[Record, ...]] = {}
    for name, records, most in ((SEARCH, inputs.search, search), (HELD_OUT, inputs.held_out, held_out)):
        fitting = [record for record in records if fits(record.prompt)]
        if len(fitting) < len(records):
            notes.append(f"{len(records) - len(fitting)} {name} prompts are too long for the bundle and left out")
        fitting.sort(key=lambda record: hashlib.sha256(f"{seed}:{prompt_key(record.prompt)}".encode()).digest())
        parts[name] = tuple(fitting[:most])
    for name, least in ((SEARCH, 1), (HELD_OUT, 2)):
        if len(parts[name]) < least:
            raise SearchError(f"{len(parts[name])} {name} prompts; allowed: from {least}", param="prompts")
    return replace(inputs, search=parts[SEARCH], held_out=parts[HELD_OUT], notes=tuple(notes))


def prompts_hash(records: Iterable[Record]) -> str:
    """SHA-256 of prompts and references in their order: identifies the inputs without revealing them."""
    return hashlib.sha256(json.dumps([[r.prompt, list(r.references)] for r in records]).encode()).hexdigest()


def _halves(records: Sequence[Record], seed: int, fraction: float) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    parts = split_by_cluster(records, seed, {SEARCH: 1 - fraction, HELD_OUT: fraction})
    return parts[SEARCH], parts[HELD_OUT]
