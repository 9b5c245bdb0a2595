"""What all cells of a comparison share: a recipe, its data and base, the scorers, the prompts that search and judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.bundle import BASE_DIR
from training.config import RecipeError
from training.data.prompts import Prompt, encode_prompts
from training.data.records import one_per_prompt
from training.pipeline.base import base_folder, run_warm_start, warm_started
from training.pipeline.prepare import Data, Encoded, encode, load_data
from training.pipeline.run import warm_start_progress
from training.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from emorl_core.tokenizer import HuggingFaceTokenizer
    from training.rl.processes import Processes
    from training.scorers import Checked

SHARED_DIR = "shared"
SEARCH_PROMPTS, LEVELS = 64, 5

Report = Callable[[str, int, int], None]  # (stage, done, total)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Experiment:
    """`out` is the run's folder, `folder` where the recipe's relative paths start. `test`: the held-out prompts that
    every method answers; `search`: the validation prompts that weights are chosen on; `levels`: of that search."""

    recipe: Recipe
    folder: Path
    out: Path
    data: Data
    base: Path
    tokenizer: HuggingFaceTokenizer
    encoded: Encoded
    scorers: Mapping[str, Checked]
    processes: Processes
    test: tuple[Prompt, ...]
    search: tuple[Prompt, ...]
    levels: int = LEVELS
    retried: set[Path] = field(default_factory=set)  # failed stages that this program has trained once more

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def shared(self, seed: int) -> Path:
        """Where the trainings of a seed lie."""
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
    """Load data and scorers, and make the base that all methods and seeds start from, when it is not there yet.

    Args:
        levels: of the weight search, for every method that has one.
        search_prompts: at most so many of the validation prompts are searched on, the first.

    Raises:
        RecipeError, DataError, ScorerError, FitError, BundleError: one line each.
    """
    from emorl_core.tokenizer import HuggingFaceTokenizer
    from training.rl.processes import Processes
    from training.scorers import Context, build_scorer

    data = load_data(recipe, folder)
    for source in data.sources:
        say(source.summary())
    processes = Processes(device=recipe.compute.device, precision=recipe.compute.precision)
    if processes.count > 1:
        raise RecipeError("a comparison runs in one process; start it without accelerate launch", param="compute")
    context = Context(recipe.compute.scorer_device, folder, data.parts["train"])
    scorers = {
        name: build_scorer(objective.scorer, context, where=f"objectives.{name}.scorer")
        for name, objective in recipe.objectives.items()
    }
    base = _base(recipe, folder, data, out / SHARED_DIR / BASE_DIR, say)
    tokenizer = HuggingFaceTokenizer(base)
    encoded = encode(recipe, data, tokenizer)
    held_out = one_per_prompt([*data.parts.get("test", ())])[: recipe.evaluation.test_prompts]
    test, _ = encode_prompts(
        held_out, tokenizer, template=recipe.prompt_template, max_source_tokens=recipe.max_source_tokens
    )
    if len(test) < 2:
        raise RecipeError(f"data.splits.test holds {len(test)} prompts; allowed: from 2", param="data.splits")
    search = encoded.validation[:search_prompts]
    return Experiment(
        recipe, folder, out, data, base, tokenizer, encoded, scorers, processes, test, search, levels
    )  # fmt: skip


def _base(recipe: Recipe, folder: Path, data: Data, made: Path, say: Say) -> Path:
    if recipe.base.warm_start is None:
        return base_folder(recipe, folder)
    if warm_started(recipe, folder, data, made):
        return made
    return run_warm_start(recipe, folder, data, made, overwrite=True, progress=warm_start_progress(say))


def as_json(value: Any) -> str:
    """For a file that people read too."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
