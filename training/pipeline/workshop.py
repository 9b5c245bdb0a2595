"""Assembles everything a recipe needs: data, base, tokenizer, prompts, scorers, trainers.

Used by `emorl train`, the demo and the comparison of methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emorl_core.models.registry import adapter_task, load_model
from emorl_core.scorers import Checked, Context, build_scorer
from emorl_core.text.tokenizer import HuggingFaceTokenizer
from training.config import RecipeError
from training.pipeline.base import base_folder, how_prompts_go, run_warm_start, start_folder, warm_started, worded
from training.pipeline.invocation import check_start
from training.pipeline.pairs import EncodedPairs, encode_pairs, given_records
from training.pipeline.prepare import Data, Encoded, check_passes, encode, fingerprint
from training.progress import FitProgress, Say
from training.recipe.recipe import Recipe
from training.rl.given import Given
from training.rl.processes import Processes
from training.rl.rewards import FixedMix, RewardMix
from training.rl.settings import LoraSettings
from training.rl.task import Goal, Task
from training.rl.tracking import Report
from training.rl.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Joint:
    """Joint training: one adapter, called `name`, for all scorers of a recipe."""

    name: str
    mix: RewardMix


@dataclass(frozen=True, slots=True)
class Workshop:
    """`folder`: where the recipe's relative paths start. `base`: a checkpoint's folder."""

    recipe: Recipe
    folder: Path
    data: Data
    processes: Processes
    base: Path
    tokenizer: HuggingFaceTokenizer
    encoded: Encoded
    scorers: dict[str, Checked]
    pairs: EncodedPairs | None = None

    def trainer(
        self,
        run: Path,
        report: Report = lambda record: None,
        *,
        recipe: Recipe | None = None,
        joint: Joint | None = None,
        mark: dict[str, str] | None = None,
    ) -> Trainer:
        """A trainer on a separately loaded model.

        Args:
            run: folder for its log and checkpoints.
            recipe: the workshop's recipe with other training settings; None: unchanged.
            joint: one adapter for all scorers; None: one per scorer.
            mark: part of the fingerprint, to distinguish trainings of one recipe.
        """
        recipe = recipe or self.recipe
        model: Any = load_model(self.base, device=self.processes.device, dtype=torch.float32, training=True)
        pairs = {} if self.pairs is None else {"pairs": self.pairs.sha256}
        task = task_of(
            recipe,
            model,
            self.tokenizer,
            self.encoded,
            self.scorers,
            {**fingerprint(recipe, self.data, self.base), **pairs, **(mark or {})},
            joint,
            self.pairs,
        )
        return Trainer(task, self.processes, run, report)


def open_workshop(
    recipe: Recipe,
    folder: Path,
    data: Data,
    processes: Processes,
    made: Path,
    *,
    progress: FitProgress | None = None,
    say: Say = lambda line: None,
) -> Workshop:
    """Get the base, warm-started into the folder `made` if the recipe asks for it and it does not exist yet, and build
    everything else. say: called with one-line messages.

    Raises:
        RecipeError, DataError, ScorerError, FitError, BundleError: one line each.
    """
    check_passes(recipe, data)
    # First, so that invalid scorers, and bases whose adapters cannot start at the reply, are refused before a base is
    # fitted.
    context = Context(recipe.compute.scorer_device, folder, data.parts["train"])
    scorers = {
        name: build_scorer(objective.scorer, context, where=f"objectives.{name}.scorer")
        for name, objective in recipe.objectives.items()
    }
    recipe = worded(recipe, folder)
    say(f"prompts {how_prompts_go(recipe)}")
    records = given_records(recipe, folder, data)
    if recipe.base.warm_start is not None and recipe.lora.act_on == "reply":
        check_start(recipe, start_folder(recipe, folder))
    base = _base(recipe, folder, data, processes, made, progress, say)
    tokenizer = HuggingFaceTokenizer(base)
    encoded = encode(recipe, data, tokenizer, adapter_task(base))
    say(f"{len(encoded.train)} training and {len(encoded.validation)} validation prompts, {encoded.cut} cut")
    pairs = encode_pairs(recipe, records, base, encoded.invocation)
    if pairs is not None:
        say(pairs.summary())
    return Workshop(recipe, folder, data, processes, base, tokenizer, encoded, scorers, pairs)


def task_of(
    recipe: Recipe,
    model: Any,
    tokenizer: HuggingFaceTokenizer,
    encoded: Encoded,
    scorers: dict[str, Checked],
    fingerprint: dict[str, str],
    joint: Joint | None = None,
    pairs: EncodedPairs | None = None,
) -> Task:
    """The trainer's task for a recipe.

    Raises `RecipeError` if prompts leave no room for a reply in the base's context.
    """
    longest = encoded.longest if pairs is None else max(encoded.longest, pairs.longest)
    _check_room(recipe, longest, model.facts.max_positions)
    if joint is not None:
        goals = {joint.name: Goal(scorers, joint.mix, joint_lora(recipe), recipe.rl.learning_rate)}
    else:
        goals = {
            name: Goal({name: scorer}, FixedMix({name: 1.0}), recipe.lora_of(name), recipe.learning_rate_of(name))
            for name, scorer in scorers.items()
        }
    return Task(
        goals,
        model,
        tokenizer,
        encoded.train,
        encoded.validation,
        fingerprint,
        recipe.seed,
        recipe.rl,
        recipe.compute,
        recipe.lora.dropout,
        encoded.invocation,
        joint=joint is not None,
        given=_given(pairs, joint),
    )


def joint_lora(recipe: Recipe) -> LoraSettings:
    """LoRA settings of a joint adapter: as many parameters as the single adapters have together, with the scale of
    `lora`."""
    rank = sum(recipe.lora_of(name).rank for name in recipe.objectives)
    return recipe.lora.model_copy(update={"rank": rank, "alpha": recipe.lora.alpha * rank / recipe.lora.rank})


def _given(pairs: EncodedPairs | None, joint: Joint | None) -> Given | None:
    """A joint adapter learns from the replies of all objectives."""
    if pairs is None or joint is None:
        return None if pairs is None else pairs.given
    every = tuple(pair for own in pairs.given.pairs.values() for pair in own)
    return Given(pairs.given.fit, {joint.name: every})


def _check_room(recipe: Recipe, longest: int, positions: int | None) -> None:
    most = longest + recipe.rl.max_new_tokens
    if positions is not None and most > positions:
        raise RecipeError(
            f"the longest prompt has {longest} tokens and rl.max_new_tokens is {recipe.rl.max_new_tokens}, "
            f"{most} in all; the base has {positions} positions; lower max_source_tokens or rl.max_new_tokens",
            param="rl.max_new_tokens",
        )


def _base(
    recipe: Recipe,
    folder: Path,
    data: Data,
    processes: Processes,
    made: Path,
    progress: FitProgress | None,
    say: Say,
) -> Path:
    if recipe.base.warm_start is None:
        return base_folder(recipe, folder)
    if warm_started(recipe, folder, data, made):
        say("base: warm-started before")
        return made
    if processes.count > 1:
        raise RecipeError(
            "base.warm_start: not in several processes; run emorl warm-start first, then --set base={path: …}",
            param="base.warm_start",
        )
    return run_warm_start(recipe, folder, data, made, overwrite=True, progress=progress)
