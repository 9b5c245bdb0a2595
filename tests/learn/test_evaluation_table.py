"""The statistics of the comparison: intervals over prompts, spread over seeds, tests that keep their level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.evaluation.statistics import Answers, across, comparisons, estimated, holm, permutation_p
from training.search.bootstrap import resamples

RANDOM = np.random.Generator(np.random.PCG64(7))


def test_the_mean_is_over_prompts_and_seeds_and_the_spread_over_seeds_only() -> None:
    answers = Answers({1: np.array([0.2, 0.4]), 2: np.array([0.6, 0.8])})
    estimate = estimated(answers, resamples(2))
    assert estimate.interval.estimate == pytest.approx(0.5)
    assert estimate.seeds == pytest.approx({1: 0.3, 2: 0.7})
    assert estimate.spread == pytest.approx(np.std([0.3, 0.7], ddof=1))
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((0.4, 0.6)), "prompts' means are .4 and .6"


def test_one_seed_has_no_spread() -> None:
    assert estimated(Answers({3: np.array([0.1, 0.3])}), resamples(2)).spread is None
    assert across({3: 5.0})["spread"] is None


def test_the_permutation_test_equals_all_sign_flips_counted_out() -> None:
    differences = RANDOM.normal(0.3, 1.0, 10)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    assert permutation_p(differences, count=100_000) == pytest.approx(exact, abs=0.01)


def test_equal_methods_are_not_told_apart_and_different_ones_are() -> None:
    assert permutation_p(np.zeros(30)) == 1.0
    assert permutation_p(np.full(30, 0.1)) == pytest.approx(1 / 10_001)


def test_the_permutation_test_keeps_its_level() -> None:
    """200 tests without an effect at the level .1: more than 36 small p-values have a chance below 1e-3 (binomial)."""
    small = sum(permutation_p(RANDOM.normal(0, 1, 12), count=1000, seed=i) <= 0.1 for i in range(200))
    assert small <= 36


def test_holm_against_the_example_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_comparisons_pair_prompts_and_use_the_seeds_that_both_have() -> None:
    rising = np.linspace(0.1, 0.9, 20)
    methods = {
        "emorl": Answers({1: rising + 0.05, 2: rising + 0.05, 3: rising}),
        "uniform": Answers({1: rising, 2: rising + 0.1}),
        "base": Answers({4: rising}),
    }
    (made,) = comparisons({"mean": methods}, "emorl", resamples(20))
    assert (made.other, made.seeds, made.seeds_ahead) == ("uniform", (1, 2), 1)
    assert made.difference.estimate == pytest.approx(0.0)
    assert made.difference.high - made.difference.low < 1e-9, "the difference is the same for every prompt"


def test_the_correction_counts_every_column() -> None:
    ahead = {"emorl": Answers({1: np.full(12, 0.9)}), "base": Answers({1: np.linspace(0, 0.1, 12)})}
    one = comparisons({"a": ahead}, "emorl", resamples(12))
    two = comparisons({"a": ahead, "b": ahead}, "emorl", resamples(12))
    assert two[0].p == one[0].p
    assert two[0].p_holm == pytest.approx(2 * one[0].p_holm)
