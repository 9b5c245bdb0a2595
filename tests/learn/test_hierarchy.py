"""The bootstrap over trainings and prompts: it keeps its level where trainings vary, and today's prompt-level test does
not; it sees what differs; it treats a dialogue as one witness."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.reporting.hierarchy import over_trainings_and_prompts
from training.search.score_table import Array

SEEDS, PROMPTS = 5, 120
SIMULATIONS = 1000
# Standard deviations of a difference's parts: training, dialogue, prompt, single reply.
NULLS = {
    "training above all": (0.06, 0.0, 0.0, 0.15),
    "training and prompts": (0.02, 0.05, 0.15, 0.15),
    "prompts above all": (0.0, 0.1, 0.2, 0.1),
    "replies above all": (0.0, 0.0, 0.0, 0.3),
}


def differences(parts: tuple[float, ...], generator: np.random.Generator, clusters: Array) -> Array:
    """[SEEDS, PROMPTS], with mean 0 over all trainings, dialogues and prompts."""
    training, dialogue, prompt, reply = parts
    return np.asarray(
        training * generator.normal(size=(SEEDS, 1))
        + (dialogue * generator.normal(size=clusters.max() + 1))[clusters]
        + prompt * generator.normal(size=PROMPTS)
        + reply * generator.normal(size=(SEEDS, PROMPTS))
    )


def dialogues(sizes: tuple[int, ...]) -> Array:
    """Numbers of the clusters of PROMPTS prompts, with these sizes in turn."""
    numbers: list[int] = []
    while len(numbers) < PROMPTS:
        cluster = numbers[-1] + 1 if numbers else 0
        numbers += [cluster] * sizes[cluster % len(sizes)]
    return np.array(numbers[:PROMPTS])


def rejected(parts: tuple[float, ...], clusters: Array) -> float:
    """Share of simulated comparisons without a difference in which the test at 5 % finds one."""
    generator = np.random.Generator(np.random.PCG64(11))
    found = [
        over_trainings_and_prompts(differences(parts, generator, clusters), clusters.tolist(), resamples=499, seed=i).p
        for i in range(SIMULATIONS)
    ]
    return float(np.mean(np.array(found) <= 0.05))


@pytest.mark.parametrize("sizes", [(1,), (1, 4, 2, 7)], ids=["prompts", "dialogues"])
@pytest.mark.parametrize("null", NULLS)
def test_without_a_difference_five_in_a_hundred_tests_find_one(null: str, sizes: tuple[int, ...]) -> None:
    assert 0.03 <= rejected(NULLS[null], dialogues(sizes)) <= 0.08


def test_a_test_over_prompts_alone_finds_differences_that_are_not_there() -> None:
    """Why a claim needs seeds: the models of five trainings differ, the methods do not."""
    generator = np.random.Generator(np.random.PCG64(12))
    found = []
    for _ in range(SIMULATIONS):
        prompts = differences(NULLS["training above all"], generator, dialogues((1,))).mean(axis=0)
        found.append(abs(prompts.mean()) > 1.98 * prompts.std(ddof=1) / PROMPTS**0.5)
    assert np.mean(found) > 0.4


def test_a_difference_larger_than_both_kinds_of_chance_is_found() -> None:
    generator = np.random.Generator(np.random.PCG64(13))
    clusters = dialogues((1, 3))
    values = differences(NULLS["training and prompts"], generator, clusters) + 0.15
    found = over_trainings_and_prompts(values, clusters.tolist())
    assert found.p < 0.01
    assert found.interval.low > 0
    assert found.interval.estimate == pytest.approx(values.mean())


def test_p_and_interval_agree() -> None:
    generator = np.random.Generator(np.random.PCG64(14))
    clusters = dialogues((1, 2))
    for shift in (0.0, 0.03, 0.06, 0.09):
        values = differences(NULLS["training and prompts"], generator, clusters) + shift
        found = over_trainings_and_prompts(values, clusters.tolist(), resamples=1999)
        assert (found.p <= 0.05) == (found.interval.low > 0 or found.interval.high < 0)


def test_copies_of_a_prompt_in_one_dialogue_add_nothing() -> None:
    """Four prompts a dialogue that always answer alike: the interval is that of one prompt a dialogue."""
    generator = np.random.Generator(np.random.PCG64(15))
    once = 0.02 * generator.normal(size=(SEEDS, 1)) + 0.2 * generator.normal(size=(SEEDS, 30))
    four = np.repeat(once, 4, axis=1)
    alone = over_trainings_and_prompts(once, list(range(30)))
    together = over_trainings_and_prompts(four, [i // 4 for i in range(120)])
    apart = over_trainings_and_prompts(four, list(range(120)))
    assert together.interval.low == pytest.approx(alone.interval.low)
    assert together.p == alone.p
    assert apart.interval.high - apart.interval.low < together.interval.high - together.interval.low


def test_the_order_of_seeds_and_prompts_does_not_matter_much_and_the_seed_decides() -> None:
    values = differences(NULLS["training and prompts"], np.random.Generator(np.random.PCG64(16)), dialogues((1,)))
    one = over_trainings_and_prompts(values, list(range(PROMPTS)), seed=1)
    assert one == over_trainings_and_prompts(values, list(range(PROMPTS)), seed=1)
    other = over_trainings_and_prompts(values, list(range(PROMPTS)), seed=2)
    assert one != other
    assert one.p == pytest.approx(other.p, abs=0.05)


def test_what_never_varies_has_no_interval() -> None:
    same = over_trainings_and_prompts(np.zeros((5, 6)), list(range(6)))
    assert (same.interval.low, same.interval.high, same.p) == (0.0, 0.0, 1.0)
    constant = over_trainings_and_prompts(np.full((5, 6), 0.1), list(range(6)))
    assert (constant.interval.low, constant.interval.high) == pytest.approx((0.1, 0.1))
    assert constant.p < 0.001


@pytest.mark.parametrize(("seeds", "clusters"), [(1, [0, 1]), (5, [0, 0])])
def test_one_training_or_one_dialogue_says_nothing(seeds: int, clusters: list[int]) -> None:
    with pytest.raises(ValueError, match="allowed: two of each"):
        over_trainings_and_prompts(np.zeros((seeds, 2)), clusters)


def test_what_varies_in_one_prompt_only_has_finite_bounds() -> None:
    """Many resamples never draw that prompt, and have no spread."""
    values = np.zeros((5, 6))
    values[:, 2] = 1.0
    found = over_trainings_and_prompts(values, list(range(6)))
    assert found.interval.estimate == pytest.approx(1 / 6)
    assert -1 < found.interval.low < 1 / 6 < found.interval.high < 1.5
    assert found.p > 0.05
