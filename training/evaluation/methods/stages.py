"""Trainings that several methods share: the objectives' adapters in lockstep, or one joint adapter.

A stage is a folder with PEFT adapters and `stage.json`, written atomically. `<stage>.run` beside it has the log and the
checkpoints from which an interrupted training resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emorl_core.adapters.adapter import Adapter, read_peft
from emorl_core.adapters.writer import write_peft
from emorl_core.errors import EmorlError
from emorl_core.files.writing import appearing
from training.evaluation.methods.dynaopt import dynaopt
from training.evaluation.methods.experiment import Experiment, as_json
from training.progress import Progress
from training.recipe.recipe import Recipe
from training.rl.rewards import FixedMix
from training.rl.tracking import LOG_FILE

StageName = Literal["adapters", "uniform", "dynaopt"]
STAGE_FILE = "stage.json"
FORMAT = "emorl-stage/1"


class MethodError(EmorlError):
    """A method cannot answer; its cell has the reason."""

    code = "method_failed"


@dataclass(frozen=True, slots=True)
class Stage:
    """`about[adapter]`: status, reason, consumption and validation curves."""

    folder: Path
    about: Mapping[str, Mapping[str, Any]]

    def adapters(self, names: tuple[str, ...]) -> list[Adapter]:
        """Raises `MethodError` if one of these adapters failed to train."""
        for name in names:
            if self.about[name]["status"] != "finished":
                raise MethodError(f"the training of {name} failed: {self.about[name]['reason']}")
        return [read_peft(self.folder / name, name) for name in names]


def trained(experiment: Experiment, stage: StageName, seed: int, progress: Progress, *, retry: bool = False) -> Stage:
    """The stage of a seed: loaded if it exists, otherwise trained. retry: train again once if it failed.

    Raises `RecipeError`, `ScorerError`.
    """
    folder = experiment.shared(seed) / stage
    run = folder.with_name(f"{stage}.run")
    if (folder / STAGE_FILE).is_file():
        found = _read(folder)
        sound = all(each["status"] == "finished" for each in found.about.values())
        if sound or not retry or folder in experiment.retried:
            return found
        experiment.retried.add(folder)
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(folder)
    _train(experiment, stage, seed, folder, run, progress)
    return _read(folder)


def recipe_of(recipe: Recipe, stage: StageName, seed: int) -> Recipe:
    """The recipe with the cell's seed and, for joint training, `rl.joint_reward` as the reward."""
    changed: dict[str, Any] = {"seed": seed}
    if stage != "adapters":
        changed["rl"] = recipe.rl.model_copy(update={"reward": recipe.rl.joint_reward})
    return recipe.model_copy(update=changed)


def _train(experiment: Experiment, stage: StageName, seed: int, folder: Path, run: Path, progress: Progress) -> None:
    from emorl_core.models.registry import adapter_task
    from training.pipeline.workshop import Joint, joint_lora

    recipe = recipe_of(experiment.recipe, stage, seed)
    names = tuple(experiment.scorers)
    joint = {
        "adapters": None,
        "uniform": Joint("uniform", FixedMix.even(names)),
        "dynaopt": Joint("dynaopt", dynaopt(names, seed, recipe.preset)),
    }[stage]

    def told(record: Mapping[str, Any]) -> None:
        if record["event"] == "fit" and recipe.adapter_start is not None:
            progress(f"fitting {stage}", record["step"], recipe.adapter_start.steps)
        if record["event"] == "step":
            progress(f"training {stage}", record["step"], recipe.rl.stop.max_steps)

    # A checkpoint of another rank cannot be loaded.
    mark = {"stage": stage} | ({} if joint is None else {"rank": str(joint_lora(recipe).rank)})
    trainer = experiment.workshop.trainer(run, told, recipe=recipe, joint=joint, mark=mark)
    trainer.run(resume=True)
    curves = _curves(run / LOG_FILE, recipe.rl.prompts_per_step)
    about = {}
    with appearing(folder) as made:
        for objective in trainer.objectives:
            values = None if recipe.rl.keep == "last" else objective.best
            adapter = trainer.stacks.adapter(objective.lane, objective.name, objective.fresh, values)
            write_peft(
                adapter, made / objective.name, base_name=recipe.base.hub, task=adapter_task(experiment.workshop.base)
            )
            about[objective.name] = {
                "status": objective.status,
                "reason": objective.reason,
                "steps": objective.steps,
                "best_step": objective.best_step,
                "reward": recipe.rl.reward,
                "reward_weights": dict(objective.mix.weights),  # at the end
                "consumption": objective.consumption.as_dict(),
                "curve": curves[objective.name],
            }
        (made / STAGE_FILE).write_text(
            as_json({"format": FORMAT, "stage": stage, "seed": seed, "adapters": about}), encoding="utf-8"
        )


def _curves(log: Path, prompts_per_step: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Adapter -> curve -> validations. A single objective's curve has its name; a joint adapter has `mean` and one
    curve per objective."""
    curves: dict[str, dict[str, list[dict[str, float]]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] != "validation":
            continue
        step = record["step"]
        for name, score in record["scores"].items():
            parts = record.get("by_scorer", {}).get(name)
            named = {name: score} if parts is None else {"mean": score, **parts}
            for curve, value in named.items():
                point = {"step": step, "prompts": step * prompts_per_step, "score": value}
                curves.setdefault(name, {}).setdefault(curve, []).append(point)
    return curves


def _read(folder: Path) -> Stage:
    return Stage(folder, json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))["adapters"])
