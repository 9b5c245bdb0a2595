"""Where a search looks: the paper's cube of weights, or the simplex of directions. Both halve their cell at each level.

All points are dyadic (k / 2^m), so floats hold them exactly and equal points are equal numbers; only a simplex's middle
is not, and is the float nearest to it, however it came about.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from emorl_core.engine.sweep import simplex_grid

Point = tuple[float, ...]  # one number per objective
Cell = tuple[Point, ...]  # the corners of a cell: two opposite ones of a box, all of a simplex
Part = tuple[Cell, tuple[Point, ...]]  # a half-size cell, and the points whose sum is its score


def grid_points(objectives: int, steps: int) -> list[Point]:
    """All weights in steps of 1 / `steps` that sum to 1: 11 for two objectives and 66 for three, at ten steps."""
    names = [str(number) for number in range(objectives)]
    return [tuple(vector.values()) for vector in simplex_grid(names, steps)]


class Space(Protocol):
    """Cells, the points looked at in a cell, and its half-size parts."""

    @property
    def whole(self) -> Cell: ...

    @property
    def points_per_level(self) -> int: ...

    def grid(self, cell: Cell) -> list[Point]: ...

    def parts(self, cell: Cell) -> list[Part]: ...

    def evenness(self, point: Point) -> float:
        """Which of several points with one score is taken: the one with the largest, and of those the first."""


@dataclass(frozen=True, slots=True)
class Cube:
    """[0, 1]^N as published: 3 points a dimension, 2^N sub-boxes, each scored by its 2^N corners (method.md section 4).

    Multiples of one vector are points of their own here although they give the same greedy text, and so is the zero
    vector, which stands for the empty text.
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
    """Weights from 0 that sum to 1: N - 1 dimensions, one point per direction, no zero vector.

    A cell is a simplex with N corners. Looked at are all points that cut its edges into quarters, C(N + 3, 4) of them,
    and its middle, which is one of them for N = 1, 2 and 4 only: without it three objectives could never weigh the
    same. Of points with one score the one with the most even weights is taken: what makes no difference ends in no
    corner.
    Of its 2^(N - 1) half-size parts (edgewise subdivision, Edelsbrunner & Grayson 2000, by way of Kuhn's path
    simplices, so that shapes stay few) the one with the largest sum over its corners and edge midpoints is next; the
    next level knows those points already. docs/search.md compares this with a stick-breaking box.
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
        return -math.fsum(weight * weight for weight in point)  # the distance to equal weights, but for constants


def middle(cell: Cell) -> Point:
    """The mean of a cell's corners."""
    return _mean(cell, (1,) * len(cell))


def ray(point: Point) -> tuple[int, ...]:
    """The direction of a point as whole numbers without a common divisor; zeros for the zero vector. Equal for two
    points exactly when one is a positive multiple of the other."""
    fractions = [Fraction(value) for value in point]
    common = math.lcm(*(value.denominator for value in fractions))
    numbers = [int(value * common) for value in fractions]
    divisor = math.gcd(*numbers) or 1
    return tuple(number // divisor for number in numbers)


def _thirds(cell: Cell) -> list[tuple[float, float, float]]:
    low, high = cell
    return [(a, (a + b) / 2, b) for a, b in zip(low, high, strict=True)]


def _cut(cell: Cell, pieces: int) -> list[Point]:
    """All points that cut the edges, faces, … of a simplex into `pieces`; its corners come first."""
    counts = [counts for counts in itertools.product(range(pieces + 1), repeat=len(cell)) if sum(counts) == pieces]
    counts.sort(key=lambda each: (-max(each), [-count for count in each]))
    return [_mean(cell, each) for each in counts]


def _mean(cell: Cell, counts: tuple[int, ...]) -> Point:
    """The corners' mean, each counted so often."""
    total = sum(counts)
    return tuple(
        math.fsum(count * corner[i] for count, corner in zip(counts, cell, strict=True)) / total
        for i in range(len(cell[0]))
    )


def _paths(dimensions: int) -> list[list[tuple[int, ...]]]:
    """The 2^d half-size parts of a simplex; each corner as how often the mean counts the old corners (2 in all).

    The simplex is laid out as 2 >= x1 >= ... >= xd >= 0, whose parts are the paths from a whole-numbered point along
    all axes in some order that stay inside.
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
