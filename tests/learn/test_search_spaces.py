"""Cubes and simplices: what they look at, and how they are halved."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from training.search.strategies.spaces import Cell, Cube, Simplex, middle, ray


def volume(cell: Cell) -> float:
    """Of a simplex in barycentric coordinates, as a share of the whole."""
    return abs(float(np.linalg.det(np.array(cell))))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5, 6])
def test_the_parts_of_a_simplex_fill_it_and_are_equally_large(objectives: int) -> None:
    space = Simplex(objectives)
    cell = space.whole
    for _ in range(3):
        parts = space.parts(cell)
        assert len(parts) == 2 ** (objectives - 1)
        assert [volume(part) for part, _ in parts] == pytest.approx([volume(cell) / len(parts)] * len(parts))
        # They do not overlap: the middle of each lies in no other one.
        for (one, _), (other, _) in itertools.permutations(parts, 2):
            inside = np.linalg.solve(np.array(other).T, np.mean(one, axis=0))
            assert inside.min() < -1e-9
        cell = parts[-1][0]


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_shapes_of_simplices_stay_few(objectives: int) -> None:
    """A cell's longest edge halves at every level: no cell degenerates into a needle."""
    space = Simplex(objectives)
    for choice in range(2 ** (objectives - 1)):
        cell = space.whole
        for _ in range(6):
            cell = space.parts(cell)[choice][0]
        edges = [math.dist(a, b) for a, b in itertools.combinations(cell, 2)]
        assert max(edges) <= math.sqrt(2) / 2**6 * math.sqrt(objectives) + 1e-12
        assert max(edges) / min(edges) <= math.sqrt(objectives) + 1e-9


@pytest.mark.parametrize(("objectives", "points"), [(1, 1), (2, 5), (3, 16), (4, 35), (5, 71), (6, 127)])
def test_the_points_of_a_simplex_level(objectives: int, points: int) -> None:
    space = Simplex(objectives)
    grid = space.grid(space.whole)
    assert len(grid) == len(set(grid)) == space.points_per_level == points
    assert all(sum(point) == pytest.approx(1.0) and min(point) >= 0.0 for point in grid)
    assert grid[:objectives] == list(space.whole)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_the_next_level_knows_the_points_that_scored_its_cell(objectives: int) -> None:
    space = Simplex(objectives)
    grid = set(space.grid(space.whole))
    # Where the middle is no point of the quarters, it speaks for none.
    centre = middle(space.whole) if objectives == 3 else None
    covered = set()
    for part, scored_by in space.parts(space.whole):
        assert len(scored_by) == math.comb(objectives + 1, 2)
        assert set(scored_by) <= grid
        assert set(scored_by) == (grid & set(space.grid(part))) - {centre}
        covered.update(scored_by)
    assert covered == grid - {centre}, "every point of a level but its middle speaks for some part"


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5, 6])
def test_every_level_looks_at_its_middle(objectives: int) -> None:
    space = Simplex(objectives)
    assert (1 / objectives,) * objectives in space.grid(space.whole), "equal weights can be chosen"
    cell = space.whole
    for _ in range(4):
        assert middle(cell) in space.grid(cell)
        cell = space.parts(cell)[-1][0]


def test_the_middle_of_the_inner_part_is_the_one_that_is_known() -> None:
    """However a cell came about: its middle is one number, so it is evaluated once."""
    space = Simplex(3)
    inner = [part for part, _ in space.parts(space.whole) if middle(part) == middle(space.whole)]
    assert len(inner) == 1
    assert middle(inner[0]) in space.grid(space.whole)


def test_even_weights_are_the_evenest() -> None:
    space = Simplex(3)
    order = [(1 / 3, 1 / 3, 1 / 3), (0.25, 0.25, 0.5), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)]
    assert sorted(order, key=space.evenness, reverse=True) == order
    assert space.evenness((0.5, 0.25, 0.25)) == space.evenness((0.25, 0.5, 0.25))
    assert Cube(3).evenness((1.0, 0.0, 0.0)) == Cube(3).evenness((1.0, 1.0, 1.0))


def test_the_boxes_of_a_cube() -> None:
    space = Cube(2)
    assert space.grid(space.whole) == list(itertools.product((0.0, 0.5, 1.0), repeat=2))
    assert space.parts(space.whole)[1] == (
        ((0.0, 0.5), (0.5, 1.0)),
        ((0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (0.5, 1.0)),
    )


def test_rays_are_equal_exactly_for_multiples() -> None:
    assert ray((0.5, 0.25, 0.0)) == ray((1.0, 0.5, 0.0)) == (2, 1, 0)
    assert ray((1 / 3, 1 / 3, 1 / 3)) == ray((0.0625, 0.0625, 0.0625)) == (1, 1, 1)
    assert ray((0.0, 0.0)) == (0, 0)
    assert ray((0.5, 0.25)) != ray((0.5, 0.2500000001))
