"""DynaOpt's bandits on synthetic validations: the default's, and the published code's against a trace of its description."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from training.evaluation.methods.dynaopt import (
    BUMP,
    GAMMA,
    ROUNDS_NEEDED,
    DynaOpt,
    PublishedDynaOpt,
    dynaopt,
    too_few_rounds,
)
from training.rl.rewards import Scores
from training.rl.settings import Preset, RlSettings, with_preset

NAMES = ("reflection", "empathy", "fluency")
SEEDS = 40


def scores_of(means: dict[str, float]) -> Scores:
    """One prompt, one reply."""
    return {name: [[mean]] for name, mean in means.items()}


def after(rounds: int, seed: int, *, best: str | None) -> DynaOpt:
    """Scores are noise, but for the `best` objective, whose score rises in a round in which its weight was raised. With
    none, all are noise."""
    noise = random.Random(seed)
    mix = DynaOpt(NAMES, seed)
    level = 0.5
    for step in range(rounds + 1):
        scores = {name: 0.5 + noise.gauss(0, 0.005) for name in NAMES}
        if best is not None:
            if mix.state()["arm"] == NAMES.index(best):
                level += 0.03
            scores[best] = level + noise.gauss(0, 0.005)
        mix.validated(scores_of(scores), step)
    return mix


@pytest.mark.parametrize("best", NAMES)
def test_with_a_known_best_direction_its_weight_rises_with_the_rounds(best: str) -> None:
    def weight(rounds: int) -> float:
        return statistics.fmean(after(rounds, 1000 * seed, best=best).weights[best] for seed in range(SEEDS))

    few, enough, many = weight(4), weight(ROUNDS_NEEDED), weight(1000)
    assert abs(few - 1 / 3) < 0.08, "four rounds are even weights and noise"
    assert enough > 0.5
    assert many > 0.75
    ends = [after(ROUNDS_NEEDED, 1000 * seed, best=best) for seed in range(SEEDS)]
    assert statistics.fmean(end.probabilities[NAMES.index(best)] for end in ends) > 0.35  # a quarter at the start


def test_where_nothing_is_best_the_weights_stay_even_on_average() -> None:
    ends = [after(ROUNDS_NEEDED, seed, best=None) for seed in range(SEEDS)]
    for name in NAMES:
        assert 0.25 < statistics.fmean(end.weights[name] for end in ends) < 0.42


def test_a_round_is_one_pull_and_a_bump_raises_one_weight() -> None:
    mix = DynaOpt(NAMES, seed=3)
    before = dict(mix.weights)
    assert before == dict.fromkeys(NAMES, 1 / 3)
    mix.validated(scores_of(dict.fromkeys(NAMES, 0.5)), 0)
    mix.begin_step()
    raised = [name for name in NAMES if mix.weights[name] > before[name]]
    assert len(raised) <= 1
    for name in raised:
        assert mix.weights[name] == pytest.approx((1 / 3 + BUMP) / (1 + BUMP))
    assert sum(mix.weights.values()) == pytest.approx(1.0)


def test_exp3_credits_the_pulled_arm_by_its_probability() -> None:
    mix = DynaOpt(NAMES, seed=0)
    mix.validated(scores_of(dict.fromkeys(NAMES, 0.5)), 0)
    arm = mix.state()["arm"]
    mix.validated(scores_of(dict.fromkeys(NAMES, 0.6)), 8)
    arms = mix.state()["arms"]
    # The first improvement has nothing to be compared with: half the reward. Exp3: gamma / K * reward / p.
    assert arms[arm] == pytest.approx(GAMMA * 0.5 / 0.25 / 4)
    assert sum(value == 0.0 for value in arms) == 3


# -- the published code ----------------------------------------------------------------------------------------------


class Trace:
    """The description as plain numbers: Exp3 over four arms says which weight is bumped; eight steps bump it, each by
    Exp3's own rule with a reward of 1; a validation credits the arm once with how far the mean over the scorers is above
    the last eight samples of the validation before."""

    def __init__(self) -> None:
        self.arms = [1.0] * 4
        self.weights = [1.0] * 3
        self.before: list[list[float]] = [[], [], []]

    @staticmethod
    def probability(weights: list[float], arm: int) -> float:
        return (1 - 0.07) * weights[arm] / sum(weights) + 0.07 / len(weights)

    def step(self, arm: int) -> None:
        if arm < 3:
            self.weights[arm] *= math.exp(0.07 / 3 * 1.0 / self.probability(self.weights, arm))

    def validate(self, arm: int, samples: list[list[float]]) -> None:
        gains = [sum(new) / len(new) - (sum(old) / len(old)) if old else 0.0 for new, old in zip(samples, self.before, strict=True)]  # fmt: skip
        self.arms[arm] *= math.exp(0.07 / 4 * (sum(gains) / 3) / self.probability(self.arms, arm))
        self.before = [(old + new)[-8:] for old, new in zip(self.before, samples, strict=True)]

    def shares(self) -> list[float]:
        return [weight / sum(self.weights) for weight in self.weights]


@pytest.mark.parametrize("seed", range(5))
def test_the_published_bandit_follows_its_trace(seed: int) -> None:
    """60 validations, each of one prompt with eight samples, so that the last eight are all of them."""
    draw = random.Random(seed)
    mix, trace = PublishedDynaOpt(NAMES, seed), Trace()
    mix.validated(scores_of(dict.fromkeys(NAMES, 0.99)), 0)  # the base's: the published code has none
    seen = set()
    for round_number in range(1, 61):
        arm = mix.state()["arm"]
        seen.add(arm)
        for _ in range(8):
            mix.begin_step()
            trace.step(arm)
            assert list(mix.weights.values()) == pytest.approx(trace.shares())
        samples = [[draw.random() for _ in range(8)] for _ in NAMES]
        mix.validated({name: [own] for name, own in zip(NAMES, samples, strict=True)}, 8 * round_number)
        trace.validate(arm, samples)
        expected = [trace.probability(trace.arms, i) for i in range(4)]
        assert mix.probabilities == pytest.approx(expected)
    assert seen == {0, 1, 2, 3}


def test_the_published_history_is_eight_samples_of_random_prompts() -> None:
    """With three samples a prompt, of two prompts whole and of a third two samples."""
    mix = PublishedDynaOpt(NAMES, 1)
    scores: Scores = {name: [[prompt + number / 10 for number in range(3)] for prompt in range(9)] for name in NAMES}
    prompts = set()
    for step in (8, 16, 24):
        mix.validated(scores, step)
        kept = mix.state()["history"]
        assert kept["reflection"] == kept["empathy"] == kept["fluency"], "the same samples for every scorer"
        assert len(kept["reflection"]) == 8
        found = {int(score) for score in kept["reflection"]}
        assert len(found) == 3
        prompts |= found
    assert len(prompts) > 3, "another choice at every validation"


def test_the_published_bandit_barely_moves_its_arms_and_throws_its_weights_about() -> None:
    """Improvements of a few hundredths, whatever arm is pulled."""
    for seed in range(10):
        noise = random.Random(seed)
        mix = PublishedDynaOpt(NAMES, seed)
        moved = 0.0
        for step in range(8, 8 * 51, 8):
            for _ in range(8):
                mix.begin_step()
            moved = max(moved, max(mix.weights.values()) - min(mix.weights.values()))
            mix.validated({name: [[0.5 + noise.gauss(0, 0.03)] * 3 for _ in range(8)] for name in NAMES}, step)
        assert max(abs(p - 0.25) for p in mix.probabilities) < 0.03
        assert moved > 0.3


def test_a_preset_has_its_bandit_and_a_run_enough_rounds_or_a_reason() -> None:
    assert isinstance(dynaopt(NAMES, 0, "default"), DynaOpt)
    assert isinstance(dynaopt(NAMES, 0, "paper"), PublishedDynaOpt)
    rl = RlSettings.model_validate({"stop": {"max_steps": 32}})
    reason = too_few_rounds(rl, "default")
    assert reason is not None
    assert f"would have 4 rounds (rl.stop.max_steps / rl.validate_every) and needs {ROUNDS_NEEDED}" in reason
    enough = RlSettings.model_validate({"stop": {"max_steps": ROUNDS_NEEDED}, "validate_every": 1})
    assert too_few_rounds(enough, "default") is None
    paper = RlSettings.model_validate(with_preset("paper", {"stop": {"max_steps": 32}}))
    assert too_few_rounds(paper, "paper") is None


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_bandit_that_was_saved_goes_on_as_if_it_had_not_been(preset: Preset) -> None:
    whole, first = dynaopt(NAMES, 5, preset), dynaopt(NAMES, 5, preset)
    noise = random.Random(0)
    rounds = [{name: [[noise.random()] for _ in range(9)] for name in NAMES} for _ in range(12)]
    for step, scores in enumerate(rounds):
        whole.begin_step()
        whole.validated(scores, step)
    for step, scores in enumerate(rounds[:7]):
        first.begin_step()
        first.validated(scores, step)
    second = dynaopt(NAMES, 5, preset)
    second.restore(json.loads(json.dumps(first.state())))
    for step, scores in enumerate(rounds[7:], start=7):
        second.begin_step()
        second.validated(scores, step)
    assert second.state() == whole.state()
    assert second.weights == whole.weights
