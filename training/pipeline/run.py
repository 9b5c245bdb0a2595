"""One training run from a recipe to a bundle: what `emorl train` does."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emorl_core.bundle import BASE_DIR
from training.config import RecipeError
from training.pipeline.bundle_out import write_bundle
from training.pipeline.prepare import Data
from training.recipe.recipe import Recipe
from training.rl.processes import Processes
from training.rl.tracking import Report


@dataclass(frozen=True, slots=True)
class Places:
    """`bundle`: what the run makes, whole or not at all. `run`: its log and checkpoints, beside it."""

    bundle: Path

    @property
    def run(self) -> Path:
        return self.bundle.with_name(f"{self.bundle.name}.run")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Nothing that exists is overwritten unasked. Raises `RecipeError`."""
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
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, object]:
    """Load, train, write the bundle; returns the report that lies in it as `training.json`.

    Args:
        folder: where the recipe's relative paths start.
        report: is told every record of the log.
        say: is told what is going on before and after training, one line at a time.

    Raises:
        RecipeError, DataError, ScorerError, BundleError and its kinds: one line each, before anything is trained.
    """
    import torch

    from emorl_core.models.registry import load_model
    from emorl_core.tokenizer import HuggingFaceTokenizer
    from training.pipeline.prepare import encode, fingerprint, load_data
    from training.rl.tracking import check_trackers
    from training.rl.trainer import Task, Trainer
    from training.scorers import Context, build_scorer

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
    base = _base(recipe, folder, data, places, processes, say)
    tokenizer = HuggingFaceTokenizer(base)
    encoded = encode(recipe, data, tokenizer)
    say(f"{len(encoded.train)} training and {len(encoded.validation)} validation prompts, {encoded.cut} cut")
    context = Context(compute.scorer_device, folder, data.parts["train"])
    scorers = {
        name: build_scorer(objective.scorer, context, where=f"objectives.{name}.scorer")
        for name, objective in recipe.objectives.items()
    }
    model = load_model(base, device=processes.device, dtype=torch.float32, training=True)
    task = Task(recipe, model, tokenizer, encoded.train, encoded.validation, scorers, fingerprint(recipe, data, base))
    trainer = Trainer(task, processes, places.run, report)
    processes.start_trackers("emorl", {"name": recipe.name, "preset": recipe.preset, "seed": recipe.seed})
    trainer.run(resume=resume)
    processes.close()
    if not processes.is_main:
        return {}
    return write_bundle(places.bundle, trainer, data, base, overwrite=overwrite)


def _base(
    recipe: Recipe, folder: Path, data: Data, places: Places, processes: Processes, say: Callable[[str], None]
) -> Path:
    """The base's folder; one that is warm-started lies beside the run's checkpoints."""
    from training.pipeline.base import base_folder, run_warm_start, warm_started

    if recipe.base.warm_start is None:
        return base_folder(recipe, folder)
    out = places.run / BASE_DIR
    if warm_started(recipe, folder, data, out):
        say("base: warm-started before")
        return out
    if processes.count > 1:
        raise RecipeError(
            "base.warm_start: not in several processes; run emorl warm-start first, then --set base={path: …}",
            param="base.warm_start",
        )
    return run_warm_start(recipe, folder, data, out, overwrite=True, progress=warm_start_progress(say))


def warm_start_progress(say: Callable[[str], None]) -> Callable[[int, int, float], None]:
    """Tells ten times in all how far a warm start is."""
    shown = -1

    def progress(done: int, total: int, loss: float) -> None:
        nonlocal shown
        if done * 10 // total > shown and math.isfinite(loss):  # there is no loss yet after the first step
            shown = done * 10 // total
            say(f"warm start: step {done} of {total}, loss {loss:.3f}")

    return progress
