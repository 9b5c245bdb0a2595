"""A recipe's frozen base: from the hub, from a folder, or from a warm start that is run first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emorl_core.adapters.adapter import ACTIVATED_TASK
from emorl_core.bundles.bundle import PROMPT, hub_folder
from emorl_core.models.registry import adapter_task
from emorl_core.scorers.words import prompt_key
from emorl_core.text.tokenizer import load_tokenizer
from training.config import RecipeError
from training.data.records import DIALOGUE, Record
from training.data.sources import load_records
from training.data.wording import ChatSettings
from training.pipeline.prepare import Data
from training.progress import FitProgress
from training.recipe.recipe import BaseSettings, Recipe, WarmStart
from training.seeds import derive
from training.warm_start.warm_start import RECEIPT, WarmStartSettings, fingerprint_of, warm_start, wrapped_pairs


def base_folder(recipe: Recipe, folder: Path) -> Path:
    """The checkpoint folder of an existing base: a hub id or a path.

    Raises `RecipeError` for a missing folder or a base that needs a warm start, `BundleError` when the hub cannot
    provide it.
    """
    base = recipe.base
    if base.hub is not None:
        return hub_folder(base.hub, base.revision)
    if base.path is None:
        raise RecipeError("base.warm_start has not been run", param="base.warm_start")
    found = folder / Path(base.path).expanduser()
    if not found.is_dir():
        raise RecipeError(f"base.path is {base.path!r}; there is no such folder", param="base.path")
    return found


def start_folder(recipe: Recipe, folder: Path) -> Path | None:
    """The checkpoint folder of the base or, for a warm start, of the checkpoint it starts from, which has the same
    tokenizer and shape. None for a base from scratch. Raises as `base_folder`."""
    start = recipe.base.warm_start
    if start is None:
        return base_folder(recipe, folder)
    if start.scratch is not None:
        return None
    found = BaseSettings(hub=start.hub, revision=start.revision, path=start.path)
    return base_folder(recipe.model_copy(update={"base": found}), folder)


def worded(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its prompt format filled in. If it has neither `prompt_template` nor `chat`, a decoder-only base
    uses its own chat template, or plain prompts if it has none or `chat` is null.

    Raises as `base_folder`, and BundleError for files of the base that cannot be read.
    """
    start = None if recipe.words_prompts else start_folder(recipe, folder)
    if start is None or adapter_task(start) != ACTIVATED_TASK:
        return recipe
    in_chat = "chat" not in recipe.model_fields_set and bool(load_tokenizer(start).chat_template)
    return recipe.model_copy(update={"prompt_template": PROMPT, "chat": ChatSettings() if in_chat else None})


def how_prompts_go(recipe: Recipe) -> str:
    """One line about the prompt format, for the console."""
    if recipe.chat is not None:
        return "go through the base's chat template"
    return f"go into the template {recipe.prompt_template!r}"


def run_warm_start(
    recipe: Recipe, folder: Path, data: Data, out: Path, *, overwrite: bool = False, progress: FitProgress | None = None
) -> Path:
    """Run the recipe's warm start into the folder `out`, or resume an interrupted one.

    Raises `RecipeError` for a recipe without one, `FitError`, `DataError`.
    """
    settings, records = _stage(recipe, folder, data)
    return warm_start(
        records, out, settings, base=folder, overwrite=overwrite, device=recipe.compute.device, progress=progress
    )


def warm_started(recipe: Recipe, folder: Path, data: Data, out: Path) -> bool:
    """Whether `out` holds the result of this recipe's warm start on this data."""
    try:
        receipt = json.loads((out / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    settings, records = _stage(recipe, folder, data)
    known: str = receipt.get("fingerprint", "")
    return known == fingerprint_of(settings, wrapped_pairs(records, settings.prompt_template))


def _stage(recipe: Recipe, folder: Path, data: Data) -> tuple[WarmStartSettings, list[Record]]:
    start = recipe.base.warm_start
    if start is None:
        raise RecipeError("base: the recipe has no warm_start", param="base.warm_start")
    recipe = worded(recipe, folder)
    settings = start.settings(recipe.prompt_template, recipe.max_source_tokens, recipe.chat)
    if settings.fit.seed == 0:  # numpy, which transformers seeds, takes 32 bits
        fit = settings.fit.model_copy(update={"seed": derive(recipe.seed, "warm start") % 2**32})
        settings = settings.model_copy(update={"fit": fit})
    return settings, warm_start_records(start, folder, data, recipe.data.split_by)


def warm_start_records(start: WarmStart, folder: Path, data: Data, column: str | None) -> list[Record]:
    """The records to fit the base on: `start.sources`, or the training part if there are none. See
    `records_with_replies`."""
    records = None if start.sources else data.parts["train"]
    return records_with_replies(start.sources, "base.warm_start.sources", folder, data, column, records)


def records_with_replies(
    sources: Sequence[Any],
    where: str,
    folder: Path,
    data: Data,
    column: str | None,
    records: Sequence[Record] | None = None,
) -> list[Record]:
    """The records of `sources` (or these `records`) that have a reply. Excludes prompts of the validation and test
    parts, and those of the same dialogue or with the same value in `column` (the recipe's `data.split_by`).

    where: the sources' place in the recipe. Raises `DataError`, and `RecipeError` when no record has a reply.
    """
    held = [r for part in ("validation", "test") for r in data.parts.get(part, ())]
    prompts = {prompt_key(record.prompt) for record in held}
    # Another prompt of the same dialogue, or of the same situation if a column decides, would leak too.
    together = (DIALOGUE, column) if column else (DIALOGUE,)
    values = {(key, record.extras[key]) for record in held for key in together if record.extras.get(key)}
    found = list(records or ())
    for number, source in enumerate(sources):
        found += load_records(source, base=folder, where=f"{where}.{number}")
    kept = [
        record
        for record in found
        if record.response is not None
        and prompt_key(record.prompt) not in prompts
        and not any((key, record.extras.get(key)) in values for key in together)
    ]
    if not kept:
        field = where.removesuffix(".sources")
        raise RecipeError(f"{field}: no record has a reply to fit on", param=field)
    return kept
