"""The outline of points of a triangle of weights: the corners of their convex hull (Andrew's monotone chain, 1979)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, ...]


def hull(points: NDArray[np.float64]) -> list[Point]:
    """Of points [P, 3], sum 1 each: the corners in order around, each once; points on a straight edge are left out. Of
    one point that one, of points on a line its two ends."""
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
    """Above 0 where the way from a over b to c turns left; two of the three weights say where a point lies."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
