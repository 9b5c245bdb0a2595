"""The hierarchical search against the published one, written out again here, and its counts."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest

from training.search.strategies.grid import SearchError, budget, search
from training.search.strategies.spaces import Cube, Point, Simplex, middle, ray

PAPER = (0.78, 0.5, 0.06)  # the published best weights (method.md section 6)


def bowl(centre: Sequence[float]) -> Callable[[Point], float]:
    """Largest, 0, at the centre; stretched, so that no two dimensions are alike."""
    return lambda point: -sum((i + 1) * (x - c) ** 2 for i, (x, c) in enumerate(zip(point, centre, strict=True)))


def published(dimensions: int, levels: int, reward: Callable[[Point], float]) -> tuple[Point, list[Point]]:
    """Section 4 of method.md as a plain loop that evaluates everything; returns the best point and every request."""
    low, high = [0.0] * dimensions, [1.0] * dimensions
    requests: list[Point] = []
    best: tuple[float, Point] | None = None
    for _ in range(levels):
        axes = [[low[d], (low[d] + high[d]) / 2, high[d]] for d in range(dimensions)]
        for point in itertools.product(*axes):
            requests.append(point)
            score = reward(point)
            if best is None or score > best[0]:
                best = (score, point)
        largest = -math.inf
        for box in itertools.product([0, 1], repeat=dimensions):
            total = 0.0
            for corner in itertools.product([0, 1], repeat=dimensions):
                total += reward(tuple(axes[d][box[d] + corner[d]] for d in range(dimensions)))
            if total > largest:
                largest = total
                chosen = box
        low = [axes[d][chosen[d]] for d in range(dimensions)]
        high = [axes[d][chosen[d] + 1] for d in range(dimensions)]
    assert best is not None
    return best[1], requests


class Counted:
    """A reward that records what it was asked."""

    def __init__(self, reward: Callable[[Point], float]) -> None:
        self.reward = reward
        self.asked: list[Point] = []

    def __call__(self, points: Sequence[Point]) -> list[float]:
        self.asked += points
        return [self.reward(point) for point in points]


def test_counts_of_the_paper() -> None:
    """3 objectives, 5 levels: 135 evaluations requested, 103 distinct points, 88 rays along a path like the paper's."""
    evaluate = Counted(bowl(PAPER))
    found = search(Cube(3), 5, evaluate)
    assert budget(Cube(3), 5) == found.requested == 135
    assert len(evaluate.asked) == len(set(evaluate.asked)) == len(found.scores) == 103
    assert len({ray(point) for point in evaluate.asked}) == 88
    assert found.best == (0.78125, 0.5, 0.0625)


@pytest.mark.parametrize(
    ("dimensions", "requested", "distinct"), [(1, 15, 7), (2, 45, 29), (3, 135, 103), (4, 405, 341)]
)
def test_any_number_of_objectives_costs_3_to_the_n_a_level(dimensions: int, requested: int, distinct: int) -> None:
    evaluate = Counted(bowl([0.3, 0.9, 0.1, 0.6][:dimensions]))
    found = search(Cube(dimensions), 5, evaluate)
    assert (found.requested, len(evaluate.asked)) == (requested, distinct)
    assert all(abs(x - c) <= 1 / 32 for x, c in zip(found.best, [0.3, 0.9, 0.1, 0.6], strict=False))


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_the_found_point_is_the_published_ones(dimensions: int) -> None:
    """Brute force, on rewards with a known optimum and on rewards without any shape."""
    draw = random.Random(dimensions)
    for attempt in range(8):
        centre = [draw.random() for _ in range(dimensions)]
        rough = draw.random()

        def reward(point: Point, centre: list[float] = centre, rough: float = rough, attempt: int = attempt) -> float:
            noise = 0.0 if attempt < 4 else 0.2 * math.sin(1e3 * (rough + sum(x * 3**i for i, x in enumerate(point))))
            return bowl(centre)(point) + noise

        expected, requests = published(dimensions, 4, reward)
        evaluate = Counted(reward)
        found = search(Cube(dimensions), 4, evaluate)
        assert found.best == expected
        assert [point for level in found.levels for point in level.points] == requests
        assert evaluate.asked == list(dict.fromkeys(requests))


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_the_simplex_search_closes_in_on_a_known_optimum(objectives: int) -> None:
    draw = random.Random(objectives)
    for _ in range(5):
        raw = [draw.expovariate(1) for _ in range(objectives)]
        centre = [value / sum(raw) for value in raw]
        evaluate = Counted(lambda point, centre=centre: -sum((x - c) ** 2 for x, c in zip(point, centre, strict=True)))
        found = search(Simplex(objectives), 6, evaluate)
        reach = 1 / 16 if objectives < 4 else 1 / 6
        assert max(abs(x - c) for x, c in zip(found.best, centre, strict=True)) < reach
        assert len({ray(point) for point in evaluate.asked}) == len(evaluate.asked), "no direction is looked at twice"
        assert all(any(point) for point in evaluate.asked)


def test_each_level_is_inside_the_part_with_the_largest_sum() -> None:
    found = search(Cube(2), 3, Counted(bowl((0.9, 0.2))))
    assert [level.cell for level in found.levels] == [
        ((0.0, 0.0), (1.0, 1.0)),
        ((0.5, 0.0), (1.0, 0.5)),
        ((0.75, 0.0), (1.0, 0.25)),
    ]
    assert [level.number for level in found.levels] == [1, 2, 3]
    assert found.levels[0].best == (1.0, 0.0)
    assert found.levels[0].best_score == pytest.approx(-0.01 - 2 * 0.04)


def test_the_best_point_may_be_one_that_an_early_level_saw() -> None:
    """The part with the largest sum need not hold the best point; the best single point wins all the same."""
    spike = (0.0, 1.0)
    found = search(
        Cube(2), 4, lambda points: [5.0 if point == spike else point[0] + 2.0 * (1 - point[1]) for point in points]
    )
    assert found.best == spike
    assert found.levels[-1].cell[0][0] > 0


def test_the_zero_vector_guides_and_cannot_win() -> None:
    found = search(Cube(2), 3, lambda points: [-sum(point) for point in points], eligible=any)
    assert found.best == (0.0, 0.125)
    assert found.scores[(0.0, 0.0)] == 0.0


@pytest.mark.parametrize(
    ("scores", "says"),
    [([1.0], "1 scores for 9 points"), ([math.nan] * 9, "nan for point 0"), ([True] * 9, "True for point 0")],
)
def test_what_is_no_score_is_refused(scores: list[float], says: str) -> None:
    with pytest.raises(SearchError, match=says):
        search(Cube(2), 1, lambda points: scores)


def test_levels_below_one_are_refused() -> None:
    with pytest.raises(SearchError, match="levels is 0"):
        search(Cube(2), 0, lambda points: [0.0] * len(points))


def test_ties_end_at_equal_weights_and_not_in_a_corner() -> None:
    """A reward that sees no difference, and one that sees none among several points."""
    flat = search(Simplex(3), 4, lambda points: [0.5] * len(points))
    assert flat.best == (1 / 3, 1 / 3, 1 / 3)
    assert all(level.best == flat.best for level in flat.levels), "the cells close in on it too"
    half = search(Simplex(3), 3, lambda points: [float(point[0] >= 0.5) for point in points])
    assert half.best == (0.5, 0.25, 0.25)
    two = search(Simplex(2), 3, lambda points: [0.5] * len(points))
    assert two.best == (0.5, 0.5)


def test_equal_weights_are_found_where_they_are_best() -> None:
    found = search(Simplex(3), 1, lambda points: [-max(point) for point in points])
    assert found.best == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize("most", [1, 5, 27, 30, 46, 60, 103, 500])
def test_a_search_ends_at_the_evaluations_it_may_have(most: int) -> None:
    evaluate = Counted(bowl(PAPER))
    found = search(Cube(3), 5, evaluate, most=most)
    assert len(evaluate.asked) == len(found.scores) == min(most, 103)
    assert found.best_score == max(found.scores.values())
    whole = search(Cube(3), 5, Counted(bowl(PAPER)))
    for cut, level in zip(found.levels, whole.levels, strict=False):
        assert cut.cell == level.cell
        assert set(cut.points) <= set(level.points)
    # What is left out of the last level is what is farthest from its middle.
    last, left = found.levels[-1], set(whole.levels[len(found.levels) - 1].points) - set(found.scores)
    centre = middle(last.cell)
    before = {point for level in found.levels[:-1] for point in level.points}
    new = [point for point in last.points if point not in before]
    assert not left or not new or max(math.dist(p, centre) for p in new) <= min(math.dist(p, centre) for p in left)


def test_a_search_without_evaluations_is_refused() -> None:
    with pytest.raises(SearchError, match="most is 0"):
        search(Cube(2), 1, lambda points: [0.0] * len(points), most=0)
