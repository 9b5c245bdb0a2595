"""Points -> score tables, with a cache of all evaluations.

Nothing is computed twice: points that give the same texts are evaluated once, a text that follows from its neighbours
is not generated, and a prompt's text is scored once, however many points give it and however often the search was
interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np

from training.data.records import Record
from training.search.evaluations.evaluation import Counts, Evaluation
from training.search.evaluations.log import EvaluationLog
from training.search.score_table import ScoreTable
from training.search.strategies.spaces import Point


class Evaluating(Protocol):
    """Evaluates points over one set of prompts: in this process, or by tasks of a cluster."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scorers."""

    @property
    def counts(self) -> Counts:
        """Counters; `rays` is not counted here."""

    def key(self, point: Point) -> Hashable:
        """Equal for points that give the same replies."""

    def evaluate(self, points: Sequence[Point]) -> list[Evaluation]:
        """points: with different keys, none of them cached. Raises `EngineError`, `ScorerError`."""

    def remember(self, evaluation: Evaluation) -> None:
        """Add a known evaluation, so that it is not generated or scored again."""


# (records, progress callback with the number of new texts) -> evaluator of points over them
EvaluatingOver = Callable[[Sequence[Record], Callable[[int], None]], Evaluating]


class Evaluator:
    """Evaluates points over one set of prompts and caches the results."""

    def __init__(self, evaluating: Evaluating, *, log: EvaluationLog | None = None) -> None:
        """log: where evaluations are written to and restored from."""
        self.names = evaluating.names
        self._evaluating, self._log = evaluating, log
        self._done: dict[Hashable, Evaluation] = {}
        for line in log.read if log is not None else ():
            self._remember(Evaluation.read(line, self.names))

    @property
    def counts(self) -> Counts:
        counts = self._evaluating.counts
        counts.rays = len(self._done)
        return counts

    def evaluations(self) -> list[Evaluation]:
        """All evaluations, computed or from the log."""
        return list(self._done.values())

    def tables(self, points: Sequence[Point]) -> list[ScoreTable]:
        """One table per point. Raises `EngineError`, `ScorerError`."""
        new: dict[Hashable, Point] = {}
        for point in points:
            key = self._evaluating.key(point)
            if key not in self._done:
                new.setdefault(key, point)
        if new:
            made = self._evaluating.evaluate(list(new.values()))
            if self._log is not None:
                self._log.append([evaluation.as_line(self.names) for evaluation in made])
            for evaluation in made:
                self._remember(evaluation)
        return [ScoreTable(self.names, np.array(self._done[self._evaluating.key(point)].scores)) for point in points]

    def _remember(self, evaluation: Evaluation) -> None:
        self._done[self._evaluating.key(evaluation.point)] = evaluation
        self._evaluating.remember(evaluation)
