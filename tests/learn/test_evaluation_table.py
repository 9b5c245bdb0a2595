"""The statistics of the comparison: intervals, spread over seeds, tests that keep their level, and what needs seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.evaluation.cells import EvaluationError
from training.evaluation.reporting.hierarchy import over_trainings_and_prompts
from training.evaluation.reporting.statistics import (
    FEWEST_SEEDS,
    Answers,
    across,
    check_installed,
    comparisons,
    estimated,
    holm,
    interval_of_items,
    over_seeds_p,
    sign_flip_p,
)
from training.search.bootstrap import mean_interval, resamples
from training.search.score_table import Array

RANDOM = np.random.Generator(np.random.PCG64(7))


def trainings(count: int, prompts: int = 20, shift: float = 0.0) -> Answers:
    """Seeds from 1 on."""
    rising = np.linspace(0.1, 0.9, prompts)
    return Answers({seed: rising + shift + 0.02 * RANDOM.normal(size=prompts) for seed in range(1, count + 1)})


def stacked(answers: Answers) -> Array:
    return np.stack(list(answers.by_seed.values()))


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


def test_with_five_seeds_an_interval_is_over_trainings_and_with_fewer_it_is_over_prompts() -> None:
    draws = resamples(20)
    few, enough = trainings(FEWEST_SEEDS - 1), trainings(FEWEST_SEEDS)
    assert estimated(few, draws).interval == mean_interval(few.over_seeds(), draws)
    assert estimated(enough, draws).interval == over_trainings_and_prompts(stacked(enough), range(20)).interval


def test_the_permutation_test_equals_all_sign_flips_counted_out() -> None:
    differences = RANDOM.normal(0.3, 1.0, 10)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    assert sign_flip_p(differences) == pytest.approx(exact)


def test_equal_methods_are_not_told_apart_and_different_ones_are() -> None:
    assert sign_flip_p(np.zeros(30)) == 1.0
    assert sign_flip_p(np.array([0.4])) == 1.0
    assert sign_flip_p(np.full(30, 0.1)) == pytest.approx(2 / 10_000)


def test_the_permutation_test_keeps_its_level() -> None:
    """200 tests without an effect at the level .1: more than 36 small p-values have a chance below 1e-3 (binomial)."""
    small = sum(sign_flip_p(RANDOM.normal(0, 1, 9), seed=i) <= 0.1 for i in range(200))
    assert small <= 36


def test_a_test_over_seeds_needs_seeds_that_differ() -> None:
    assert over_seeds_p([0.1]) is None
    assert over_seeds_p([0.1, 0.1, 0.1]) is None
    assert over_seeds_p([0.0, 0.0]) == 1.0
    # mean .3, standard error .1 of three: t = 3 with two degrees of freedom
    assert over_seeds_p([0.3 - 0.1 * 3**0.5, 0.3, 0.3 + 0.1 * 3**0.5]) == pytest.approx(0.0955, abs=1e-4)


def test_items_have_an_interval_of_their_mean() -> None:
    found = interval_of_items(np.array([0.0, 1.0] * 50))
    assert found.estimate == 0.5
    assert (found.low, found.high) == pytest.approx((0.4, 0.6), abs=0.03)
    assert interval_of_items(np.array([0.5])) == interval_of_items(np.array([0.5, 0.5]))


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


def test_fewer_than_five_seeds_make_no_claim() -> None:
    def made(count: int) -> dict[str, object]:
        columns = {"mean": {"emorl": trainings(count, shift=0.1), "base": trainings(count)}}
        (found,) = comparisons(columns, "emorl", resamples(20))
        return found.as_dict()

    few, enough = made(FEWEST_SEEDS - 1), made(FEWEST_SEEDS)
    assert (few["claim"], few["p"], few["p_holm"]) == (False, None, None)
    assert few["p_prompts_of_these_models"] == pytest.approx(2 / 10_000)
    assert few["p_seeds"] is not None
    assert enough["claim"] is True
    assert isinstance(enough["p"], float)
    assert enough["p"] < 0.01
    assert enough["p_holm"] == enough["p"]


def test_prompts_of_one_dialogue_are_one_witness() -> None:
    """Six dialogues of four prompts each, all ahead: 2 of the 64 ways to flip six signs."""
    ahead = {"emorl": Answers({1: np.full(24, 0.9)}), "base": Answers({1: np.linspace(0, 0.1, 24)})}
    (made,) = comparisons({"a": ahead}, "emorl", resamples(24, clusters=[i // 4 for i in range(24)]))
    assert made.p_prompts == pytest.approx(2 / 64)


def test_the_correction_counts_every_column() -> None:
    ahead = {"emorl": trainings(5, shift=0.1), "base": trainings(5)}
    one = comparisons({"a": ahead}, "emorl", resamples(20))
    two = comparisons({"a": ahead, "b": ahead}, "emorl", resamples(20))
    assert one[0].p_holm is not None
    assert two[0].p == one[0].p
    assert two[0].p_holm == pytest.approx(2 * one[0].p_holm)


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r'emorl evaluate needs scipy: pip install "emorl\[evaluation\]"'):
        check_installed()
