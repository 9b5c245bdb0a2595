"""Hierarchical grid search over a callable, for any number of objectives (method.md section 4).

Each level evaluates a grid over the current cell. The half-size part with the largest sum is the next cell; the best
single point of all levels wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emorl_core.errors import EmorlError
from training.search.strategies.spaces import Cell, Part, Point, Space, middle

Evaluate = Callable[[Sequence[Point]], Sequence[float]]  # new points -> one score each; higher is better


class SearchError(EmorlError):
    """A search cannot be run as requested, or a score table or goal is invalid."""

    code = "invalid_search"


@dataclass(frozen=True, slots=True)
class Level:
    """The points of one level with their `scores`, including points known from earlier levels."""

    number: int  # from 1
    cell: Cell
    points: tuple[Point, ...]
    scores: tuple[float, ...]
    best: Point  # of this level
    best_score: float


@dataclass(frozen=True, slots=True)
class Found:
    """`requested` counts every point of every level; `scores` has the distinct ones in order of evaluation."""

    best: Point
    best_score: float
    levels: tuple[Level, ...]
    scores: dict[Point, float]
    requested: int


def budget(space: Space, levels: int) -> int:
    """Evaluations that a search requests, 3^N * levels in the cube. Fewer are run, since levels share points."""
    return space.points_per_level * levels


def search(
    space: Space,
    levels: int,
    evaluate: Evaluate,
    *,
    eligible: Callable[[Point], bool] = lambda point: True,
    most: int | None = None,
) -> Found:
    """Search `levels` deep. Ties are resolved by the space's `evenness`.

    Args:
        evaluate: called once per level with the new points. A point is never passed twice.
        eligible: which points may win; all points guide the search (the zero vector does, but cannot win).
        most: maximum number of evaluations. A level that would exceed it evaluates only the new points nearest to the
            middle of its cell, and is the last one.

    Raises:
        SearchError: levels or most below 1, or scores that are not one finite number per point.
    """
    if levels < 1:
        raise SearchError(f"levels is {levels}; allowed: a whole number from 1", param="levels")
    if most is not None and most < 1:
        raise SearchError(f"most is {most}; allowed: a whole number from 1", param="most")
    known: dict[Point, float] = {}
    done: list[Level] = []
    cell = space.whole
    for number in range(1, levels + 1):
        points = space.grid(cell)
        new = list(dict.fromkeys(point for point in points if point not in known))
        last = number == levels
        if most is not None and len(known) + len(new) >= most:
            left_out = _nearest_first(new, cell)[most - len(known) :]
            points, new = ([point for point in some if point not in left_out] for some in (points, new))
            last = True
        if new:
            known.update(zip(new, checked_scores(evaluate(new), len(new)), strict=True))
        scores = tuple(known[point] for point in points)
        best = _best(space, [point for point in points if eligible(point)] or points, known)
        done.append(Level(number, cell, tuple(points), scores, best, known[best]))
        if last:
            break
        cell = _best_part(space, cell, known)
    candidates = [point for point in known if eligible(point)]
    if not candidates:
        raise SearchError("no point of the search may win")
    best = _best(space, candidates, known)
    return Found(best, known[best], tuple(done), known, sum(len(level.points) for level in done))


def checked_scores(scores: Sequence[float], expected: int) -> list[float]:
    """Raises `SearchError` unless there are `expected` scores, all finite."""
    if len(scores) != expected:
        raise SearchError(f"the evaluation returned {len(scores)} scores for {expected} points")
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise SearchError(f"the evaluation returned {score!r} for point {index}; allowed: finite numbers")
    return [float(score) for score in scores]


def _best(space: Space, points: Sequence[Point], scores: dict[Point, float]) -> Point:
    return max(points, key=lambda point: (scores[point], space.evenness(point)))


def _best_part(space: Space, cell: Cell, scores: dict[Point, float]) -> Cell:
    def worth(part: Part) -> tuple[float, float]:
        corners, points = part
        return math.fsum(scores[point] for point in points), space.evenness(middle(corners))

    return max(space.parts(cell), key=worth)[0]


def _nearest_first(points: Sequence[Point], cell: Cell) -> list[Point]:
    centre = middle(cell)
    return sorted(points, key=lambda point: math.dist(point, centre))
