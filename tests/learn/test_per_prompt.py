"""Weights for each prompt: the head that predicts them, and the sweep that it learns from."""

from __future__ import annotations

import numpy as np
import pytest

from training.search.predictor import RIDGE, fit, targets
from training.search.strategies.spaces import grid_points

RANDOM = np.random.Generator(np.random.PCG64(3))


def test_targets_are_the_points_each_as_its_normalised_score_says() -> None:
    points = grid_points(3, 2)
    scores = RANDOM.uniform(0, 1, (5, len(points)))
    found = targets(scores, points)
    for row, own in zip(found, scores, strict=True):
        shares = [np.exp((score - own.mean()) / own.std()) for score in own]
        expected = sum(np.array(point) * share for point, share in zip(points, shares, strict=True)) / sum(shares)
        assert row == pytest.approx(expected)
        assert row.sum() == pytest.approx(1)


def test_scores_that_are_alike_ask_for_even_weights() -> None:
    assert targets(np.full((1, 15), 0.3), grid_points(3, 4))[0] == pytest.approx([1 / 3] * 3)


def test_a_fitted_head_stands_where_its_loss_is_flat() -> None:
    """The gradient of cross-entropy and ridge, written out."""
    states = RANDOM.normal(3, 2, (20, 6))
    wanted = RANDOM.dirichlet(np.ones(3), 20)
    head = fit(states, wanted)
    missed = head.weights(states) - wanted  # [P, N]
    inputs = (states - head.mean) / head.scale
    assert missed.T @ inputs / 20 + RIDGE * head.head == pytest.approx(np.zeros((3, 6)), abs=1e-6)
    assert missed.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)


def test_what_depends_on_the_state_is_found_on_other_prompts() -> None:
    direction = RANDOM.normal(size=8)

    def world(count: int) -> tuple[np.ndarray, np.ndarray]:
        states = RANDOM.normal(size=(count, 8))
        first = 1 / (1 + np.exp(-2 * states @ direction))
        return states, np.stack([first, 1 - first], axis=1)

    head = fit(*world(200), ridge=1e-3)
    states, wanted = world(50)
    assert np.abs(head.weights(states) - wanted).mean() < 0.05
    assert np.abs(wanted.mean(axis=0) - wanted).mean() > 0.2, "one answer for everybody would miss by this"


def test_equal_data_give_equal_heads_and_a_constant_state_says_nothing() -> None:
    states, wanted = np.ones((4, 3)), RANDOM.dirichlet(np.ones(2), 4)
    first, second = fit(states, wanted), fit(states, wanted)
    assert (first.head == second.head).all()
    assert (first.bias == second.bias).all()
    assert first.weights(states)[0] == pytest.approx(wanted.mean(axis=0), abs=1e-6)
