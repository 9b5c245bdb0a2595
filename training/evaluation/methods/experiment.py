"""Shared by all cells of a comparison: the recipe, its data and base, the scorers, and the search and test prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.bundles.bundle import BASE_DIR
from training.config import RecipeError
from training.data.prompts import Prompt, encode_prompts
from training.data.records import one_per_prompt
from training.data.wording import template_or_chat
from training.pipeline.prepare import load_data
from training.pipeline.run import warm_start_progress
from training.progress import Say
from training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from emorl_core.scorers import Checked
    from training.pipeline.workshop import Workshop

SHARED_DIR = "shared"
SEARCH_PROMPTS, LEVELS = 64, 5


@dataclass(frozen=True, slots=True)
class Experiment:
    """`out`: the run's folder. `test`: the held-out prompts that every method answers. `search`: the validation prompts
    for choosing weights. `levels`: of that search."""

    workshop: Workshop
    out: Path
    test: tuple[Prompt, ...]
    search: tuple[Prompt, ...]
    levels: int = LEVELS
    retried: set[Path] = field(default_factory=set)  # failed stages that were retried in this process

    @property
    def recipe(self) -> Recipe:
        return self.workshop.recipe

    @property
    def scorers(self) -> Mapping[str, Checked]:
        return self.workshop.scorers

    def shared(self, seed: int) -> Path:
        """The folder of a seed's trainings."""
        return self.out / SHARED_DIR / f"seed-{seed}"


def prepare(
    recipe: Recipe,
    folder: Path,
    out: Path,
    *,
    say: Say = lambda line: None,
    levels: int = LEVELS,
    search_prompts: int = SEARCH_PROMPTS,
) -> Experiment:
    """Load data and scorers, and make the base of all methods and seeds unless it exists.

    Args:
        levels: of the weight search, for every method that has one.
        search_prompts: maximum number of validation prompts for the search, from the start of that part.

    Raises:
        RecipeError, DataError, ScorerError, FitError, BundleError: one line each.
    """
    from training.pipeline.invocation import check_invoked
    from training.pipeline.workshop import open_workshop
    from training.rl.processes import Processes

    data = load_data(recipe, folder)
    for source in data.sources:
        say(source.summary())
    processes = Processes(device=recipe.compute.device, precision=recipe.compute.precision)
    if processes.count > 1:
        raise RecipeError("a comparison runs in one process; start it without accelerate launch", param="compute")
    workshop = open_workshop(
        recipe, folder, data, processes, out / SHARED_DIR / BASE_DIR, progress=warm_start_progress(say)
    )
    recipe = workshop.recipe
    held_out = one_per_prompt([*data.parts.get("test", ())])[: recipe.evaluation.test_prompts]
    encode = template_or_chat(recipe.prompt_template, recipe.chat, workshop.tokenizer)
    test, _ = encode_prompts(held_out, encode, max_source_tokens=recipe.max_source_tokens)
    if len(test) < 2:
        raise RecipeError(f"data.splits.test holds {len(test)} prompts; allowed: from 2", param="data.splits")
    if workshop.encoded.invocation is not None:
        check_invoked(workshop.encoded.invocation, test)
    search = workshop.encoded.validation[:search_prompts]
    return Experiment(workshop, out, test, search, levels)


def as_json(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
