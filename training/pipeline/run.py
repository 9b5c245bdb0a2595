"""One training run from a recipe to a bundle: what `emorl train` does."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from emorl_core.bundles.bundle import BASE_DIR
from emorl_core.bundles.stored_scorers import learned
from training.config import RecipeError
from training.pipeline.bundle_out import write_bundle
from training.progress import FitProgress, Say
from training.recipe.recipe import Recipe
from training.rl.processes import Processes
from training.rl.tracking import Report


@dataclass(frozen=True, slots=True)
class Places:
    """`bundle`: the run's output, written atomically. `run`: its log and checkpoints, beside it."""

    bundle: Path

    @property
    def run(self) -> Path:
        return self.bundle.with_name(f"{self.bundle.name}.run")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuses to overwrite anything unless asked to. Raises `RecipeError`."""
        if self.bundle.exists() and not overwrite and (not self.bundle.is_dir() or any(self.bundle.iterdir())):
            raise RecipeError(
                f"--out {self.bundle}: already holds something; --overwrite replaces it when the run has ended, "
                "or name another folder",
                param="out",
            )
        if self.run.exists() and not resume and not overwrite:
            raise RecipeError(
                f"{self.run} holds an earlier run; --resume goes on with it, --overwrite starts anew", param="out"
            )


def train(
    recipe: Recipe,
    folder: Path,
    places: Places,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = lambda record: None,
    say: Say = lambda line: None,
) -> dict[str, object]:
    """Load, train, write the bundle; returns its report, `training.json`.

    Args:
        folder: where the recipe's relative paths start.
        report: called with every log record.
        say: called with progress messages before and after training, one line each.

    Raises:
        RecipeError, DataError, ScorerError, BundleError and its kinds: one line each, before anything is trained.
    """
    from training.pipeline.fooled import warn_of_constants
    from training.pipeline.prepare import load_data
    from training.pipeline.workshop import open_workshop
    from training.rl.tracking import check_trackers

    places.check(resume=resume, overwrite=overwrite)
    compute = recipe.compute
    check_trackers(compute.trackers)
    data = load_data(recipe, folder)
    for source in data.sources:
        say(source.summary())
    processes = Processes(
        device=compute.device, precision=compute.precision, trackers=compute.trackers, folder=places.run
    )
    if overwrite and not resume and processes.is_main and places.run.exists():
        shutil.rmtree(places.run)
    processes.wait()
    workshop = open_workshop(
        recipe, folder, data, processes, places.run / BASE_DIR, progress=warm_start_progress(say), say=say
    )
    warn_of_constants(workshop.scorers, data.parts["train"], say)
    trainer = workshop.trainer(places.run, report)
    processes.start_trackers("emorl", {"name": recipe.name, "preset": recipe.preset, "seed": recipe.seed})
    trainer.run(resume=resume)
    processes.close()
    if not processes.is_main:
        return {}
    for name, objective in recipe.objectives.items():
        if learned(objective.scorer):
            say(f"the bundle gets no scorer for {name}: its scorer learned from the data, which bundles do not carry")
    return write_bundle(
        places.bundle, workshop.recipe, trainer, data, workshop.base, recipe_folder=folder, overwrite=overwrite
    )


def warm_start_progress(say: Say) -> FitProgress:
    """Reports the progress of a warm start ten times in all."""
    shown = -1

    def progress(done: int, total: int, loss: float) -> None:
        nonlocal shown
        if done * 10 // total > shown and math.isfinite(loss):  # there is no loss yet after the first step
            shown = done * 10 // total
            say(f"warm start: step {done} of {total}, loss {loss:.3f}")

    return progress
