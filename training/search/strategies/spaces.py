"""Search spaces: the paper's cube of weights, and the simplex of directions. Both halve their cell at each level.

All points are dyadic (k / 2^m), so floats represent them exactly and equal points compare equal; the exception, a
simplex's middle, is always rounded to the same float.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from emorl_core.engine.sweep import simplex_grid

Point = tuple[float, ...]  # one number per objective
Cell = tuple[Point, ...]  # corners: two opposite ones of a box, or all of a simplex
Part = tuple[Cell, tuple[Point, ...]]  # a half-size cell, and the points whose scores are summed


def grid_points(objectives: int, steps: int) -> list[Point]:
    """All weights in steps of 1 / `steps` that sum to 1: 11 for two objectives and 66 for three, at ten steps."""
    names = [str(number) for number in range(objectives)]
    return [tuple(vector.values()) for vector in simplex_grid(names, steps)]


class Space(Protocol):
    """Cells, the points to evaluate in a cell, and its half-size parts."""

    @property
    def whole(self) -> Cell: ...

    @property
    def points_per_level(self) -> int: ...

    def grid(self, cell: Cell) -> list[Point]: ...

    def parts(self, cell: Cell) -> list[Part]: ...

    def evenness(self, point: Point) -> float:
        """Tie-breaker among points with equal scores: the largest wins, then the first."""


@dataclass(frozen=True, slots=True)
class Cube:
    """[0, 1]^N as published: 3 points per dimension, 2^N sub-boxes, each scored by its 2^N corners (method.md section
    4).

    Multiples of a vector are separate points here, although they give the same greedy text. The zero vector stands for
    the empty text.
    """

    objectives: int

    @property
    def whole(self) -> Cell:
        return ((0.0,) * self.objectives, (1.0,) * self.objectives)

    @property
    def points_per_level(self) -> int:
        return int(3**self.objectives)

    def grid(self, cell: Cell) -> list[Point]:
        return list(itertools.product(*_thirds(cell)))

    def parts(self, cell: Cell) -> list[Part]:
        sides = [((low, middle), (middle, high)) for low, middle, high in _thirds(cell)]
        boxes = [tuple(itertools.product(*box)) for box in itertools.product(*sides)]
        return [((corners[0], corners[-1]), corners) for corners in boxes]

    def evenness(self, point: Point) -> float:  # noqa: ARG002 - the published search takes the first of equals
        return 0.0


@dataclass(frozen=True, slots=True)
class Simplex:
    """Non-negative weights that sum to 1: N - 1 dimensions, one point per direction, no zero vector.

    A cell is a simplex with N corners. Its points are those that divide its edges into quarters, C(N + 3, 4) of them,
    and its middle, which they already include for N = 1, 2 and 4; without the middle, three objectives could never have
    equal weights. Ties go to the most even weights, so that a search without a signal does not end in a corner.

    The cell has 2^(N - 1) half-size parts (edgewise subdivision, Edelsbrunner & Grayson 2000, through Kuhn's path
    simplices, which keeps the number of shapes small). The next cell is the part with the largest sum over its corners
    and edge midpoints, which the next level reuses. docs/search.md compares this with a stick-breaking box.
    """

    objectives: int

    @property
    def whole(self) -> Cell:
        return tuple(tuple(float(i == corner) for i in range(self.objectives)) for corner in range(self.objectives))

    @property
    def points_per_level(self) -> int:
        return math.comb(self.objectives + 3, 4) + (4 % self.objectives != 0)

    def grid(self, cell: Cell) -> list[Point]:
        points = _cut(cell, 4)
        return points if 4 % self.objectives == 0 else [*points, middle(cell)]

    def parts(self, cell: Cell) -> list[Part]:
        found = []
        for steps in _paths(len(cell) - 1):
            corners = tuple(_mean(cell, counts) for counts in steps)
            found.append((corners, tuple(_cut(corners, 2))))
        return found

    def evenness(self, point: Point) -> float:
        return -math.fsum(weight * weight for weight in point)  # distance to equal weights, up to constants


def middle(cell: Cell) -> Point:
    """The mean of a cell's corners."""
    return _mean(cell, (1,) * len(cell))


def ray(point: Point) -> tuple[int, ...]:
    """The direction of a point as coprime integers; zeros for the zero vector. Equal exactly for positive multiples."""
    fractions = [Fraction(value) for value in point]
    common = math.lcm(*(value.denominator for value in fractions))
    numbers = [int(value * common) for value in fractions]
    divisor = math.gcd(*numbers) or 1
    return tuple(number // divisor for number in numbers)


def _thirds(cell: Cell) -> list[tuple[float, float, float]]:
    low, high = cell
    return [(a, (a + b) / 2, b) for a, b in zip(low, high, strict=True)]


def _cut(cell: Cell, pieces: int) -> list[Point]:
    """All points that divide the edges, faces, … of a simplex into `pieces`; its corners come first."""
    counts = [counts for counts in itertools.product(range(pieces + 1), repeat=len(cell)) if sum(counts) == pieces]
    counts.sort(key=lambda each: (-max(each), [-count for count in each]))
    return [_mean(cell, each) for each in counts]


def _mean(cell: Cell, counts: tuple[int, ...]) -> Point:
    """The mean of the corners, weighted by `counts`."""
    total = sum(counts)
    return tuple(
        math.fsum(count * corner[i] for count, corner in zip(counts, cell, strict=True)) / total
        for i in range(len(cell[0]))
    )


def _paths(dimensions: int) -> list[list[tuple[int, ...]]]:
    """The 2^d half-size parts of a simplex. A new corner is given by the counts of the old corners in its mean (2 in
    total).

    The simplex is laid out as 2 >= x1 >= ... >= xd >= 0. Its parts are the paths from an integer point along all axes,
    in any order, that stay inside.
    """
    found = []
    for start in itertools.product((0, 1), repeat=dimensions):
        for order in itertools.permutations(range(dimensions)):
            path = [start]
            for axis in order:
                path.append(tuple(x + (i == axis) for i, x in enumerate(path[-1])))
            if all(_inside(x) for x in path):
                found.append([_counts(x) for x in path])
    return found


def _inside(x: tuple[int, ...]) -> bool:
    edges = (2, *x, 0)
    return all(a >= b for a, b in itertools.pairwise(edges))


def _counts(x: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in itertools.pairwise((2, *x, 0)))
