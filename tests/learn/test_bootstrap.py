"""Bootstrap intervals: they cover what they should, and pairing uses that the prompts are the same."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from training.search.bootstrap import interval, mean_interval, resamples


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    draw = np.random.Generator(np.random.PCG64(1))
    hits = 0
    for seed in range(200):
        values = draw.normal(0.3, 1.0, size=60)
        found = mean_interval(values, resamples(60, count=400, seed=seed), confidence=0.9)
        hits += found.low <= 0.3 <= found.high
    assert (
        165 <= hits <= 195
    )  # 180 expected; 2.5 standard deviations to either side, and percentile ones are a bit narrow


def test_the_width_is_that_of_the_normal_theory() -> None:
    values = np.random.Generator(np.random.PCG64(2)).normal(size=400)
    found = mean_interval(values, resamples(400, count=4000))
    assert found.estimate == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)


def test_any_statistic_agrees_with_the_mean_s_short_way() -> None:
    values = np.random.Generator(np.random.PCG64(3)).random(30)
    draws = resamples(30, count=300)
    assert asdict(interval(lambda chosen: float(values[chosen].mean()), draws)) == pytest.approx(
        asdict(mean_interval(values, draws))
    )


def test_paired_differences_are_tighter_than_unpaired_ones() -> None:
    """Two methods on the same prompts: what the prompts have in common cancels."""
    draw = np.random.Generator(np.random.PCG64(4))
    hard = draw.normal(size=100)
    one, other = hard + 0.1 + 0.02 * draw.normal(size=100), hard
    draws = resamples(100)
    paired = interval(lambda chosen: float(one[chosen].mean() - other[chosen].mean()), draws)
    assert paired.low > 0.09
    assert paired.high < 0.11
    alone = mean_interval(one, draws)
    assert alone.high - alone.low > 5 * (paired.high - paired.low)


def test_the_same_seed_draws_the_same() -> None:
    assert (resamples(9, count=7, seed=5).drawn == resamples(9, count=7, seed=5).drawn).all()
    assert (resamples(9, count=7, seed=5).drawn != resamples(9, count=7, seed=6).drawn).any()


def test_clusters_are_drawn_as_a_whole() -> None:
    """Prompts of a dialogue come together, however many they are and wherever they stand."""
    names = ["a", "b", "a", "c", "c", "a"]
    draws = resamples(6, clusters=names, count=50, seed=1)
    assert draws.size == 6
    for places in draws:
        drawn = [names[place] for place in places]
        assert all(drawn.count(name) % names.count(name) == 0 for name in set(names))
    values = np.random.Generator(np.random.PCG64(5)).random(6)
    assert asdict(interval(lambda chosen: float(values[chosen].mean()), draws)) == pytest.approx(
        asdict(mean_interval(values, draws))
    )
    with pytest.raises(ValueError, match="2 clusters for 3 values"):
        resamples(3, clusters=["a", "b"])


def test_prompts_that_hang_together_say_less() -> None:
    draw = np.random.Generator(np.random.PCG64(6))
    values = np.repeat(draw.normal(size=20), 5)
    alone = mean_interval(values, resamples(100))
    together = mean_interval(values, resamples(100, clusters=[i // 5 for i in range(100)]))
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_one_value_has_no_spread() -> None:
    found = mean_interval(np.array([0.25]), resamples(1))
    assert (found.low, found.estimate, found.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_cannot_be_resampled(size: int) -> None:
    with pytest.raises(ValueError, match="resamples"):
        resamples(size)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_a_confidence_is_between_0_and_1(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        mean_interval(np.zeros(3), resamples(3), confidence=confidence)
