"""Measures of a front, on paper, by counting random points, and against pymoo."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.methods.front import STEPS, Front, as_values, hypervolume, undominated
from training.search.score_table import Array
from training.search.strategies.spaces import grid_points


def random_front(seed: int, objectives: int, points: int = 30) -> Array:
    """Some points twice and some equal in one objective, as texts that do not change with the weights make them."""
    random = np.random.Generator(np.random.PCG64(seed))
    scores = random.uniform(0, 1, (points, objectives))
    scores[1] = scores[0]
    scores[2, 0] = scores[3, 0]
    return scores


def test_volumes_that_can_be_drawn() -> None:
    assert hypervolume(np.array([[1.0, 1.0, 1.0]])) == 1.0
    assert hypervolume(np.array([[0.5, 0.5]])) == pytest.approx(0.25)
    assert hypervolume(np.array([[1.0, 0.5], [0.5, 1.0]])) == pytest.approx(0.75)
    assert hypervolume(np.array([[1.0, 0.5], [0.5, 1.0], [0.5, 0.5]])) == pytest.approx(0.75), (
        "a beaten point adds none"
    )
    assert hypervolume(np.array([[0.3], [0.7]])) == pytest.approx(0.7)
    assert hypervolume(np.array([[1.0, 0.0]])) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_volume_is_the_share_of_random_points_that_are_reached(objectives: int) -> None:
    scores = random_front(1, objectives)
    tried = np.random.Generator(np.random.PCG64(2)).uniform(0, 1, (40_000, objectives))
    reached = (tried[:, None, :] <= scores[None, :, :]).all(axis=2).any(axis=1).mean()
    assert hypervolume(scores) == pytest.approx(reached, abs=0.0125)  # five standard errors at most


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_against_pymoo(seed: int, objectives: int) -> None:
    reason = "pymoo is not installed, or not whole; it judges these measures in tests only"
    judge = pytest.importorskip("pymoo.indicators.hv", reason=reason).HV
    sorting = pytest.importorskip("pymoo.util.nds.non_dominated_sorting", reason=reason).NonDominatedSorting
    weighted_sum = pytest.importorskip("pymoo.decomposition.weighted_sum", reason=reason).WeightedSum
    scores = random_front(seed, objectives)
    # pymoo minimises.
    assert hypervolume(scores) == pytest.approx(float(judge(ref_point=np.zeros(objectives))(-scores)))
    best = sorting().do(-scores, only_non_dominated_front=True)
    assert np.flatnonzero(undominated(scores)).tolist() == sorted(best.tolist())
    weights = np.random.Generator(np.random.PCG64(seed)).dirichlet(np.ones(objectives), len(scores))
    got = [-float(weighted_sum().do(-row[None], own[None]).squeeze()) for row, own in zip(scores, weights, strict=True)]
    assert Front(weights, scores).mean_inner_product == pytest.approx(np.mean(got))


def test_cover_counts_distinct_trade_offs() -> None:
    weights = np.array(grid_points(2, 2))
    assert Front(weights, np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])).cover == 1.0
    assert Front(weights, np.full((3, 2), 0.5)).cover == pytest.approx(1 / 3), "one text for all weights"
    assert Front(weights, np.array([[0.9, 0.9], [0.5, 0.5], [0.1, 0.9]])).cover == pytest.approx(1 / 3)


def test_the_grid_has_steps_of_a_tenth() -> None:
    assert (len(grid_points(2, STEPS)), len(grid_points(3, STEPS))) == (11, 66)
    assert all(sum(point) == pytest.approx(1) for point in grid_points(3, STEPS))


def test_values_name_the_objectives() -> None:
    made = as_values(("a", "b"), Front(np.array([[1.0, 0.0]]), np.array([[0.5, 0.25]])))
    assert made["points"] == [{"weights": {"a": 1.0, "b": 0.0}, "scores": {"a": 0.5, "b": 0.25}}]
    assert (made["hypervolume"], made["mean_inner_product"]) == (0.125, 0.5)
