"""A run's output bundle: adapters, base, `bundle.yaml`, and `training.json`, a report of how they were trained."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from emorl_core.adapters.writer import write_peft
from emorl_core.bundles.bundle import (
    ADAPTERS_DIR,
    BASE_DIR,
    BaseRef,
    BundleSpec,
    ObjectiveSpec,
    copy_checkpoint,
    write_spec,
)
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.bundles.stored_scorers import learned, store_scorers
from emorl_core.files.hashes import weights_hash
from emorl_core.files.writing import appearing
from emorl_core.models.registry import adapter_task
from training.config import RecipeError
from training.pipeline.prepare import Data
from training.recipe.recipe import Recipe
from training.rl.objective import Objective
from training.rl.trainer import Trainer

REPORT_FILE = "training.json"
REPORT_FORMAT = "emorl-training-report/1"
_PACKAGES = ("emorl", "torch", "transformers", "accelerate", "safetensors")


def write_bundle(
    folder: Path, recipe: Recipe, trainer: Trainer, data: Data, base: Path, *, recipe_folder: Path, overwrite: bool
) -> dict[str, Any]:
    """Write the bundle atomically; returns the report.

    `adapters/<objective>` has the weights that `rl.keep` names, which are served; the others are in
    `adapters-last/<objective>` (or `adapters-best`). Scorers are included, except those that learned from the data,
    whose texts must not be in bundles. recipe_folder: where the recipe's relative paths start. Raises `RecipeError`
    when the folder exists.
    """
    if folder.exists() and not overwrite:
        if not folder.is_dir() or any(folder.iterdir()):
            raise RecipeError(f"--out {folder}: already holds something; --overwrite replaces it", param="out")
        folder.rmdir()
    served, other = ("last", "best") if recipe.rl.keep == "last" else ("best", "last")
    report = _report(recipe, trainer, data)
    base_sha256, task = weights_hash(base), adapter_task(base)
    with appearing(folder, replace=overwrite) as bundle:
        for objective in trainer.objectives:
            for which, place in ((served, ADAPTERS_DIR), (other, f"{ADAPTERS_DIR}-{other}")):
                # A failed objective's last weights are its best ones, since later ones were not finite.
                values = objective.best if which == "best" else None
                adapter = trainer.stacks.adapter(objective.lane, objective.name, objective.fresh, values)
                extra = {"lora_dropout": recipe.lora.dropout}
                write_peft(
                    adapter,
                    bundle / place / objective.name,
                    base_name=recipe.base.hub,
                    base_sha256=base_sha256,
                    task=task,
                    extra=extra,
                    dtype=getattr(torch, recipe.lora.save_as),
                )
        if recipe.base.hub is None:
            copy_checkpoint(base, bundle / BASE_DIR)
        (bundle / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        used = {name: recipe.objectives[name].scorer for name in report["objectives"]}
        scorers, files = store_scorers(
            bundle, {name: spec for name, spec in used.items() if not learned(spec)}, recipe_folder
        )
        write_spec(bundle, _spec(recipe, trainer).model_copy(update={"scorers": scorers, "scorer_files": files}))
    return report


def _spec(recipe: Recipe, trainer: Trainer) -> BundleSpec:
    names = [objective.name for objective in trainer.objectives]
    profiles = recipe.profiles or {"balanced": dict.fromkeys(names, 1.0)}
    hub = recipe.base.hub
    return BundleSpec(
        name=recipe.name,
        base=BaseRef(path=BASE_DIR) if hub is None else BaseRef(hub=hub, revision=recipe.base.revision),
        prompt_template=recipe.prompt_template,
        chat=None if recipe.chat is None else recipe.chat.spec(),
        max_source_tokens=recipe.max_source_tokens,
        objectives={
            name: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{name}", description=recipe.objectives[name].description)
            for name in names
        },
        profiles={
            name: ProfileSpec(weights=weights, origin={"by": "recipe", "recipe": recipe.name})
            for name, weights in profiles.items()
        },
        default_profile=recipe.default_profile or next(iter(profiles)),
    )


def _report(recipe: Recipe, trainer: Trainer, data: Data) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "preset": recipe.preset,
        "seeds": {"run": recipe.seed, "split": recipe.data.seed},
        "steps": trainer.taken,
        "objectives": {objective.name: _objective(objective, recipe) for objective in trainer.objectives},
        "data": data.summary(),
        "fingerprint": trainer.task.fingerprint,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in _PACKAGES},
        "recipe": recipe.model_dump(mode="json"),
    }


def _objective(objective: Objective, recipe: Recipe) -> dict[str, Any]:
    means = objective.stop.means
    return {
        "status": objective.status,
        "reason": objective.reason,
        "steps": objective.steps,
        "served": recipe.rl.keep,
        "validation": {
            "base": means[0],
            "best": objective.best_mean,
            "best_step": objective.best_step,
            "last": means[-1],
        },
        "consumption": objective.consumption.as_dict(),
    }
