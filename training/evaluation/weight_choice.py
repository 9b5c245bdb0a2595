"""Weights for a method of the comparison: one search, prompts and goal for all; what a point stands for differs.

The goal is the mean over the objectives' scores and the prompts, what the comparison reports.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.records import Record
from training.evaluation.experiment import Experiment
from training.progress import Progress
from training.scorers.asking import ask
from training.search.grid import Found, SearchError, search
from training.search.inputs import prompts_hash
from training.search.log import EvaluationLog
from training.search.run import MOST_BY_GRID
from training.search.spaces import Cube, Point, Simplex
from training.search.tpe import search_tpe

TRIALS = 200  # of TPE, which takes over where a grid would be too large
Texts = Callable[[Sequence[Point]], list[list[str]]]  # points -> replies, [points][search prompts]


@dataclass(frozen=True, slots=True)
class Choice:
    """`evaluations`: points that were generated for and scored."""

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
            "score": self.score,  # on the search prompts: what they were chosen by
        }


def choose(
    experiment: Experiment,
    texts: Texts,
    log: Path,
    *,
    cube: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Choice:
    """Search. `log` keeps every evaluation, so that a search which was killed goes on.

    Args:
        cube: look among all numbers from 0 to 1, all zeros included, rather than among weights that sum to 1.

    Raises `SearchError`: too many objectives for a search in the cube; Optuna is missing.
    """
    objectives = len(experiment.scorers)
    table = _Evaluations(experiment, texts, log, progress)
    if objectives <= MOST_BY_GRID:
        space = Cube(objectives) if cube else Simplex(objectives)
        table.expected = space.points_per_level * experiment.levels
        found = search(space, experiment.levels, table.evaluate, eligible=lambda point: cube or any(point))
    elif cube:
        raise SearchError(
            f"{objectives} objectives; a search in the cube takes up to {MOST_BY_GRID}", param="objectives"
        )
    else:
        table.expected = TRIALS
        found = search_tpe(objectives, TRIALS, table.evaluate)
    return table.choice(found)


class _Evaluations:
    def __init__(self, experiment: Experiment, texts: Texts, log: Path, progress: Progress) -> None:
        self._experiment, self._texts, self._progress = experiment, texts, progress
        prompts = [Record(prompt.text) for prompt in experiment.search]
        about = {"prompts": prompts_hash(prompts), "scorers": list(experiment.scorers)}
        self._log = EvaluationLog(log, about, resume=True)
        self._known = {tuple(map(float, line["point"])): float(line["score"]) for line in self._log.read}
        self._seconds = sum(line["seconds"] for line in self._log.read)
        self._scores: dict[tuple[int, str], float] = {}  # (prompt, reply) -> mean over the scorers
        self.expected = 0

    def evaluate(self, points: Sequence[Point]) -> list[float]:
        new = [point for point in points if point not in self._known]
        if new:
            started = time.perf_counter()
            scores = self._score(self._texts(new))
            seconds = time.perf_counter() - started
            self._log.append(
                [
                    {"point": list(point), "score": score, "seconds": seconds / len(new)}
                    for point, score in zip(new, scores, strict=True)
                ]
            )
            self._known.update(zip(new, scores, strict=True))
            self._seconds += seconds
        self._progress("searching weights", len(self._known), max(self.expected, len(self._known)))
        return [self._known[point] for point in points]

    def _score(self, texts: list[list[str]]) -> list[float]:
        """[points][prompts] -> the mean of each point. A reply that was scored before is not scored again."""
        prompts = self._experiment.search
        new = list(
            dict.fromkeys((p, text) for own in texts for p, text in enumerate(own) if (p, text) not in self._scores)
        )
        if new:
            about, replies = [prompts[p] for p, _ in new], [text for _, text in new]
            columns = [ask(scorer, about, replies) for scorer in self._experiment.scorers.values()]
            # Rounded, so that the batch a reply is scored in cannot decide between points.
            means = [round(statistics.fmean(row), 6) for row in zip(*columns, strict=True)]
            self._scores.update(zip(new, means, strict=True))
        return [statistics.fmean(self._scores[p, text] for p, text in enumerate(own)) for own in texts]

    def choice(self, found: Found) -> Choice:
        count = len(found.scores)
        self._progress("searching weights", 1, 1)
        return Choice(found.best, found.best_score, count, count * len(self._experiment.search), self._seconds)
