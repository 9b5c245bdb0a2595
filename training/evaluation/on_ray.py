"""Cells of a comparison as tasks of a Ray cluster that this program is connected to. Needs the extra `ray`.

All machines see the run's folder, and it holds everything that cells share; so a cell comes out as on one machine. What
several cells need is made by the first of them, and Ray starts the others after it: a training of a seed, and a search
that a method and its best-of have in common. When a worker dies, Ray runs its task again, which goes on from the last
checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.cells import Cell, EvaluationError, write_failed
from training.evaluation.methods.answering import BEST_OF
from training.evaluation.methods.experiment import Experiment, prepare
from training.evaluation.methods.methods import methods_of, run_cell
from training.evaluation.methods.stages import STAGE_FILE
from training.evaluation.run import Wanted, attempt, missing_cells, told_of
from training.progress import Progress, Say
from training.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Setting:
    """What every worker needs to know. Paths are absolute, and mean the same on every machine. threads: of a cell."""

    recipe: Recipe
    folder: Path
    out: Path
    threads: int


def run_cells(
    out: Path,
    wanted: Wanted,
    setting: Setting,
    *,
    retry_failed: bool = False,
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda line: None,
) -> None:
    """`training.evaluation.run.run_cells`, as many cells at a time as the cluster has cores (or GPUs) for.

    Raises:
        EvaluationError: cells were lost, since their workers died again and again; the others are there.
        RecipeError, DataError, ScorerError, FitError, BundleError: the cells cannot be prepared.
    """
    missing = missing_cells(out, wanted, retry_failed=retry_failed, say=say)
    if not missing:
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    needs = _resources(setting, ray.cluster_resources())
    try:
        ray.get(ray.remote(**needs)(_make_what_all_share).remote(setting))
        task = ray.remote(**needs)(_cell)
        methods = methods_of(setting.recipe)
        trains: dict[tuple[str | None, int], Any] = {(None, seed): None for seed in wanted.seeds}  # stage, seed -> task
        cells: dict[tuple[str, int], Any] = {}
        labels: dict[Any, str] = {}
        for number, (method, seed) in enumerate(missing, start=1):
            stage = (methods[method].needs, seed)
            searches = cells.get((method.removeprefix(BEST_OF), seed))
            started = task.remote(setting, method, seed, trains.get(stage), searches)
            trains.setdefault(stage, started)
            cells[method, seed] = started
            labels[started] = f"{method}, seed {seed} ({number} of {len(missing)})"
        lost = []
        while labels:
            progress("cells", len(missing) - len(labels), len(missing))
            (ended, *_), _ = ray.wait(list(labels), num_returns=1)
            label = labels.pop(ended)
            try:
                say(f"{label}: {told_of(ray.get(ended))}")
            except RayError as error:
                if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                    raise
                lost.append(label)
                say(f"{label}: lost with its worker")
        progress("cells", len(missing), len(missing))
    except RayTaskError as error:  # what ends a comparison on one machine ends it here
        raise error.cause from None
    if lost:
        raise EvaluationError(f"{len(lost)} cells were lost with their workers; --resume runs them", param="ray")


def _resources(setting: Setting, cluster: Mapping[str, float]) -> dict[str, float]:
    """Of one cell, by Ray's names. Raises `EvaluationError`: the cluster has none of the devices of the recipe."""
    device = setting.recipe.compute.device
    has_gpus = cluster.get("GPU", 0) > 0
    if device.startswith("cuda") and not has_gpus:
        raise EvaluationError(f"compute.device is {device!r}, and the Ray cluster has no GPU", param="ray")
    return {"num_cpus": setting.threads, "num_gpus": int(has_gpus and device != "cpu")}


_prepared: dict[Path, Experiment] = {}  # in a worker, which runs one cell after the other


def _experiment(setting: Setting) -> Experiment:
    if setting.out not in _prepared:
        import torch

        torch.set_num_threads(setting.threads)
        settings = setting.recipe.evaluation
        _prepared[setting.out] = prepare(
            setting.recipe,
            setting.folder,
            setting.out,
            levels=settings.search_levels,
            search_prompts=settings.search_prompts,
        )
    return _prepared[setting.out]


def _make_what_all_share(setting: Setting) -> None:
    _experiment(setting)


def _cell(setting: Setting, method: str, seed: int, trained: Cell | None, _searched: Cell | None) -> Cell:
    """trained: the cell that has trained what this one needs, where that is another one."""
    experiment = _experiment(setting)
    needs = methods_of(experiment.recipe)[method].needs
    if needs is not None and trained is not None:
        stage = experiment.shared(seed) / needs
        if not (stage / STAGE_FILE).is_file():
            return write_failed(setting.out, method, seed, trained.reason or f"{needs} is not there")
        experiment.retried.add(stage)

    def run(method: str, seed: int, progress: Progress) -> None:
        run_cell(method, seed, experiment, progress)

    return attempt(setting.out, method, seed, run, lambda stage, done, total: None)
