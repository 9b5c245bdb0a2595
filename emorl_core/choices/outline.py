"""The outline of points of a triangle of weights: the corners of their convex hull (Andrew's monotone chain, 1979)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, ...]


def hull(points: NDArray[np.float64]) -> list[Point]:
    """The corners of the hull of points [P, 3], sum 1 each, in order, each once; points on an edge are left out. One
    point gives that point; points on a line give its two ends."""
    ordered = sorted({tuple(point) for point in points.tolist()})
    if len(ordered) < 3:
        return ordered
    ends = _half(ordered), _half(ordered[::-1])
    return ends[0][:-1] + ends[1][:-1]


def _half(ordered: list[Point]) -> list[Point]:
    """One side, from the first point to the last."""
    chain: list[Point] = []
    for point in ordered:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 1e-12:
            chain.pop()
        chain.append(point)
    return chain


def _turn(a: Point, b: Point, c: Point) -> float:
    """Above 0 where the path a, b, c turns left. Two of the three weights determine a point."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
