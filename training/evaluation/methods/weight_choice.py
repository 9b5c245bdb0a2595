"""Chooses a method's weights. All methods use the same search, prompts, goal and number of evaluations; only the
meaning of a point differs. The goal is the mean over objectives and prompts, as in the report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.records import Record
from training.evaluation.methods.experiment import Experiment
from training.progress import Progress
from training.search.evaluations.evaluator import Evaluator
from training.search.evaluations.generator import Generator
from training.search.evaluations.in_process import InProcess
from training.search.evaluations.log import EvaluationLog
from training.search.inputs import prompts_hash
from training.search.run import MOST_BY_GRID
from training.search.strategies.grid import SearchError, search
from training.search.strategies.spaces import Cube, Point, Simplex
from training.search.strategies.tpe import search_tpe

TRIALS = 200  # for TPE, which replaces a grid that would be too large


@dataclass(frozen=True, slots=True)
class ChosenWeights:
    """`evaluations`: points that were generated and scored."""

    point: Point
    score: float
    evaluations: int
    prompts: int
    seconds: float

    def as_cost(self) -> dict[str, Any]:
        return {
            "evaluations": self.evaluations,
            "prompts": self.prompts,
            "seconds": self.seconds,
            "score": self.score,  # on the search prompts, by which they were chosen
        }


def choose(
    experiment: Experiment,
    generator: Generator,
    log: Path,
    *,
    cube: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> ChosenWeights:
    """Search. `log` has every evaluation, so that an interrupted search can be resumed.

    Args:
        generator: of replies to the experiment's search prompts.
        cube: search numbers from 0 to 1 instead of weights that sum to 1, including all zeros. The cube has more points
            per level, so the search stops after as many evaluations as in the simplex.

    Raises `SearchError`: too many objectives for a search in the cube; Optuna is missing.
    """
    objectives = len(experiment.scorers)
    by_grid = objectives <= MOST_BY_GRID
    if cube and not by_grid:
        raise SearchError(
            f"{objectives} objectives; a search in the cube takes up to {MOST_BY_GRID}", param="objectives"
        )
    space = Cube(objectives) if cube else Simplex(objectives)
    most = evaluations(objectives, experiment.levels) if by_grid else TRIALS
    prompts = [Record(prompt.text) for prompt in experiment.search]
    kept = _TimedLog(log, {"prompts": prompts_hash(prompts), "scorers": list(experiment.scorers)})
    # No text is inferred from neighbours: each method generates all its texts, so that search costs are comparable.
    evaluator = Evaluator(InProcess(generator, experiment.search, experiment.scorers, infer=False), log=kept)
    known = dict(kept.scores)

    def evaluate(points: Sequence[Point]) -> list[float]:
        kept.started = time.perf_counter()
        new = [point for point in points if point not in known]
        tables = evaluator.tables(new)
        known.update((point, float(table.scores.mean())) for point, table in zip(new, tables, strict=True))
        progress("searching weights", len(known), max(most, len(known)))
        return [known[point] for point in points]

    if by_grid:
        found = search(space, experiment.levels, evaluate, eligible=lambda point: cube or any(point), most=most)
    else:
        found = search_tpe(objectives, TRIALS, evaluate)
    progress("searching weights", 1, 1)
    count = len(found.scores)
    return ChosenWeights(found.best, found.best_score, count, count * len(experiment.search), kept.seconds)


def evaluations(objectives: int, levels: int) -> int:
    """Maximum number of evaluations of a grid search in any space: as many as the simplex needs. From the second level
    on, the corners and edge midpoints of a cell are known from the level before."""
    a_level = Simplex(objectives).points_per_level
    return a_level + (levels - 1) * (a_level - math.comb(objectives + 1, 2))


class _TimedLog(EvaluationLog):
    """A log whose lines also have the seconds they took."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        super().__init__(path, about, resume=True)
        self.started = 0.0
        self.seconds = sum(line["seconds"] for line in self.read)
        # Written by older versions: points and scores, without texts.
        self.scores = {tuple(map(float, line["point"])): float(line["score"]) for line in self.read if "score" in line}
        self.read = [line for line in self.read if "score" not in line]

    def append(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        seconds = time.perf_counter() - self.started
        super().append([{**each, "seconds": seconds / len(evaluations)} for each in evaluations])
        self.seconds += seconds
