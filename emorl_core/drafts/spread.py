"""The weights to try when it is not known which are wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from emorl_core.engine.sweep import simplex_grid
from emorl_core.weights import BASE

MAX_POINTS = 2000  # points of the grid to pick from


def spread(
    objectives: Sequence[str],
    count: int,
    profile: Mapping[str, float] | None = None,
    others: Sequence[Mapping[str, float]] = (),
) -> list[Mapping[str, float]]:
    """Up to `count` different weight vectors, sum 1 each: the profile's, one per objective alone, equal weights, the
    others, and then always the grid point farthest from all before it.

    profile, others: of sum 1. Returns fewer than `count` for one objective, and where the coarsest grid with enough
    points is too large.
    """
    names = (BASE, *objectives)
    corners = simplex_grid(objectives, 1)
    equal = dict.fromkeys(objectives, 1.0 / len(objectives))
    found: list[Mapping[str, float]] = []
    for each in ([] if profile is None else [profile]) + corners + [equal, *others]:
        if not any(np.allclose(_vector(names, each), _vector(names, other)) for other in found):
            found.append(each)
    if len(found) < count and (resolution := _resolution(len(objectives), count)):
        found += _farthest(names, found, simplex_grid(objectives, resolution), count - len(found))
    return found[:count]


def _resolution(objectives: int, count: int) -> int:
    """The resolution of the coarsest grid with this many points; 0: none, or too large."""
    if objectives == 1:
        return 0
    resolution = next(r for r in range(1, count + 1) if math.comb(r + objectives - 1, objectives - 1) >= count)
    return resolution if math.comb(resolution + objectives - 1, objectives - 1) <= MAX_POINTS else 0


def _farthest(
    names: Sequence[str], found: Sequence[Mapping[str, float]], grid: Sequence[Mapping[str, float]], count: int
) -> list[Mapping[str, float]]:
    points = np.array([_vector(names, each) for each in grid])  # [points, lanes]
    away = np.full(len(points), np.inf)  # squared distance to the nearest that was picked
    for each in found:
        away = np.minimum(away, ((points - _vector(names, each)) ** 2).sum(axis=1))
    picked: list[Mapping[str, float]] = []
    while len(picked) < count and away.max() > 1e-9:
        # Rounding must not decide between points at equal distance: the first one is taken.
        best = int(np.argmax(away.round(9)))
        picked.append(grid[best])
        away = np.minimum(away, ((points - points[best]) ** 2).sum(axis=1))
    return picked


def _vector(names: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    return [weights.get(name, 0.0) for name in names]
