"""DynaOpt's reward weights (Min et al., COLING 2024, arXiv 2403.13578): an Exp3 bandit adjusts them while one adapter
is trained on all objectives. Two variants: this project's and the published one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from training.rl.rewards import RewardMix, Scores
from training.rl.settings import Preset, RlSettings
from training.seeds import derive

GAMMA = 0.07  # exploration of Exp3, as published
BUMP = 0.1  # added to a weight, before all are scaled to sum 1
_LOW, _HIGH = 0.2, 0.8  # quantiles of past improvements that map to rewards 0 and 1 (Graves et al. 2017)
_HISTORY = 8  # samples of the previous validation that the published code compares with
# Validations that it takes for the weight of an objective that always gains from being raised to be well above one
# half: docs/evaluation.md.
ROUNDS_NEEDED = 200


class Exp3:
    """Adversarial bandit (Auer et al. 2002). `logs`: logarithms of the arms' weights, which are its whole state."""

    def __init__(self, arms: int, gamma: float) -> None:
        """gamma: exploration, the share of pulls that is uniform over all arms."""
        self.logs = [0.0] * arms
        self._gamma = gamma

    @property
    def shares(self) -> list[float]:
        """The arms' weights, scaled to sum 1."""
        most = max(self.logs)
        raised = [math.exp(log - most) for log in self.logs]
        total = math.fsum(raised)
        return [weight / total for weight in raised]

    @property
    def probabilities(self) -> list[float]:
        return [(1 - self._gamma) * share + self._gamma / len(self.logs) for share in self.shares]

    def draw(self, generator: Random) -> int:
        """Draw an arm."""
        return generator.choices(range(len(self.logs)), self.probabilities)[0]

    def credit(self, arm: int, reward: float) -> None:
        """Multiply the weight of `arm`, pulled with its current probability p, by exp(gamma reward / (p K))."""
        self.logs[arm] += self._gamma * reward / self.probabilities[arm] / len(self.logs)

    def restore(self, logs: Sequence[float]) -> None:
        self.logs = list(logs)


def dynaopt(names: tuple[str, ...], seed: int, preset: Preset) -> RewardMix:
    """The variant for a preset."""
    return PublishedDynaOpt(names, seed) if preset == "paper" else DynaOpt(names, seed)


def too_few_rounds(rl: RlSettings, preset: Preset) -> str | None:
    """Why a run with these settings would say nothing about DynaOpt, or None. The published variant has no such
    limit."""
    rounds = rl.stop.max_steps // rl.validate_every
    if preset == "paper" or rounds >= ROUNDS_NEEDED:
        return None
    return (
        f"its bandit would have {rounds} rounds (rl.stop.max_steps / rl.validate_every) and needs {ROUNDS_NEEDED}: "
        "with fewer, its weights are even weights and noise"
    )


class DynaOpt:
    """A `RewardMix`. N + 1 arms: arm i raises objective i's weight by `BUMP`, the last one leaves the weights
    unchanged.

    A round lasts from one validation to the next, with one pull at its start. Its reward is the mean improvement of the
    objectives' validation scores, scaled to [0, 1] by the quantiles of all improvements so far. It learns slowly: see
    `ROUNDS_NEEDED`.
    """

    def __init__(self, names: tuple[str, ...], seed: int) -> None:
        self._names, self._seed = names, seed
        self._bandit = Exp3(len(names) + 1, GAMMA)
        self._weights = dict.fromkeys(names, 1.0 / len(names))
        self._last: dict[str, float] = {}  # means of the last validation
        self._arm: int | None = None  # of the current round
        self._improvements: list[float] = []  # of all finished rounds
        self._rounds = 0

    @property
    def weights(self) -> Mapping[str, float]:
        return self._weights

    @property
    def probabilities(self) -> list[float]:
        """Of the arms."""
        return self._bandit.probabilities

    def begin_step(self) -> None:
        pass

    def validated(self, scores: Scores, step: int) -> None:  # noqa: ARG002 - the base's validation is a start like any
        """End a round and begin the next."""
        means = _means(scores)
        if self._arm is not None:
            improvement = statistics.fmean(means[name] - self._last[name] for name in self._names)
            self._bandit.credit(self._arm, self._scaled(improvement))
            self._improvements.append(improvement)
        self._last = means
        self._arm = self._bandit.draw(Random(derive(self._seed, "dynaopt", self._rounds)))
        self._rounds += 1
        if self._arm < len(self._names):
            raised = {n: w + BUMP * (n == self._names[self._arm]) for n, w in self._weights.items()}
            total = math.fsum(raised.values())
            self._weights = {name: weight / total for name, weight in raised.items()}

    def _scaled(self, improvement: float) -> float:
        past = sorted([*self._improvements, improvement])
        low, high = _quantile(past, _LOW), _quantile(past, _HIGH)
        if high <= low:
            return 0.5  # no previous validation
        return min(1.0, max(0.0, (improvement - low) / (high - low)))

    def state(self) -> dict[str, Any]:
        return {
            "weights": dict(self._weights),
            "arms": list(self._bandit.logs),
            "last": dict(self._last),
            "arm": self._arm,
            "improvements": list(self._improvements),
            "rounds": self._rounds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._weights, self._last = dict(state["weights"]), dict(state["last"])
        self._bandit.restore(state["arms"])
        self._arm, self._rounds = state["arm"], state["rounds"]
        self._improvements = list(state["improvements"])


class PublishedDynaOpt:
    """A `RewardMix`. Two bandits: one of N + 1 arms chooses which weight to raise, if any; the other has the N weights
    of the rewards.

    An arm is drawn before the first step and after every validation. While arm i < N is held, every step credits weight
    i with a reward of 1, so the weights move a lot. A validation credits the arm once with the mean over the scorers of
    (mean score - mean of the last eight samples of the previous validation): a few hundredths, which hardly move the
    arms. The base is not validated, so the first round has no reward.

    As in the published code, prompts are validated in random order, so the last eight samples are of random prompts.
    The published code weighs every score by 1 until a weight is raised for the first time; here it is 1 / N from the
    start, which is the same direction.
    """

    def __init__(self, names: tuple[str, ...], seed: int) -> None:
        self._names, self._seed = names, seed
        self._bandit, self._shares = Exp3(len(names) + 1, GAMMA), Exp3(len(names), GAMMA)
        self._history: dict[str, list[float]] = {name: [] for name in names}
        self._rounds = 0
        self._arm = self._draw()

    @property
    def weights(self) -> Mapping[str, float]:
        return dict(zip(self._names, self._shares.shares, strict=True))

    @property
    def probabilities(self) -> list[float]:
        """Of the arms."""
        return self._bandit.probabilities

    def begin_step(self) -> None:
        if self._arm < len(self._names):
            self._shares.credit(self._arm, 1.0)

    def validated(self, scores: Scores, step: int) -> None:
        if step == 0:
            return
        means = _means(scores)
        before = {name: statistics.fmean(own) if own else means[name] for name, own in self._history.items()}
        self._bandit.credit(self._arm, statistics.fmean(means[name] - before[name] for name in self._names))
        order = list(range(len(scores[self._names[0]])))
        Random(derive(self._seed, "dynaopt history", self._rounds)).shuffle(order)
        for name, own in self._history.items():
            self._history[name] = [*own, *(score for prompt in order for score in scores[name][prompt])][-_HISTORY:]
        self._rounds += 1
        self._arm = self._draw()

    def _draw(self) -> int:
        return self._bandit.draw(Random(derive(self._seed, "dynaopt", self._rounds)))

    def state(self) -> dict[str, Any]:
        return {
            "arms": list(self._bandit.logs),
            "shares": list(self._shares.logs),
            "history": {name: list(own) for name, own in self._history.items()},
            "arm": self._arm,
            "rounds": self._rounds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._bandit.restore(state["arms"])
        self._shares.restore(state["shares"])
        self._history = {name: list(own) for name, own in state["history"].items()}
        self._arm, self._rounds = state["arm"], state["rounds"]


def _means(scores: Scores) -> dict[str, float]:
    return {name: statistics.fmean(score for own in replies for score in own) for name, replies in scores.items()}


def _quantile(ordered: list[float], share: float) -> float:
    """The quantile, linearly interpolated."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
