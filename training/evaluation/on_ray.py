"""Cells of a comparison as tasks of a Ray cluster that this process is connected to. Needs the extra `ray`.

All machines need access to the run's folder, which has everything that cells share, so results are the same as on one
machine. Work that several cells need (a seed's training, or a search shared by a method and its best-of) is done by the
first of them, and Ray starts the others afterwards. If a worker dies, Ray runs its task again, which resumes from the
last checkpoint.
"""

from __future__ import annotations

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
from training.search.evaluations.tasks import LOST, Tasks


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings for every worker. Paths are absolute and valid on all machines. threads: per cell."""

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
    """As `training.evaluation.run.run_cells`, with as many concurrent cells as the cluster has cores (or GPUs) for.

    Raises:
        EvaluationError: cells were lost because their workers died repeatedly; the others are complete.
        TasksError: the cluster cannot run the tasks.
        RecipeError, DataError, ScorerError, FitError, BundleError: the cells cannot be prepared.
    """
    missing = missing_cells(out, wanted, retry_failed=retry_failed, say=say)
    if not missing:
        return
    tasks = Tasks(setting.threads, setting.recipe.compute.device)
    shared = tasks.share(setting)
    for _, made in tasks.ended([tasks.start(_make_what_all_share, shared)]):
        if made is LOST:
            raise EvaluationError("what all cells share was lost with its worker; --resume begins again", param="ray")
    methods = methods_of(setting.recipe)
    trains: dict[tuple[str | None, int], Any] = {(None, seed): None for seed in wanted.seeds}  # stage, seed -> task
    cells: dict[tuple[str, int], Any] = {}
    labels: dict[Any, str] = {}
    for number, (method, seed) in enumerate(missing, start=1):
        stage = (methods[method].needs, seed)
        searches = cells.get((method.removeprefix(BEST_OF), seed))
        started = tasks.start(_cell, shared, method, seed, trains.get(stage), searches)
        trains.setdefault(stage, started)
        cells[method, seed] = started
        labels[started] = f"{method}, seed {seed} ({number} of {len(missing)})"
    lost = 0
    progress("cells", 0, len(missing))
    for done, (task, cell) in enumerate(tasks.ended(list(labels)), start=1):
        lost += cell is LOST
        say(f"{labels[task]}: {'lost with its worker' if cell is LOST else told_of(cell)}")
        progress("cells", done, len(missing))
    if lost:
        raise EvaluationError(f"{lost} cells were lost with their workers; --resume runs them", param="ray")


_prepared: dict[Path, Experiment] = {}  # in a worker, which runs one cell at a time


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
    """trained: the cell that trains what this one needs, if it is another one."""
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
