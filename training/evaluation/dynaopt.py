"""DynaOpt's reward weights (Min et al., COLING 2024, arXiv 2403.13578): an Exp3 bandit moves them while one adapter
is trained on all objectives.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from training.rl.settings import Preset
from training.seeds import derive

GAMMA = 0.07  # exploration of Exp3 (Auer et al. 2002), as published
PUBLISHED_BUMPS = 8  # a round, in the published port
# What a bump adds to a weight before all are scaled to sum 1. The size is this project's choice.
BUMP = 0.1
_LOW, _HIGH = 0.2, 0.8  # quantiles of past improvements that scaled rewards run between (Graves et al. 2017)


@dataclass(slots=True)
class _State:
    """Everything that moves; JSON values."""

    weights: dict[str, float]
    arms: list[float]  # log weights of Exp3, one an objective and one that does nothing
    last: dict[str, float] = field(default_factory=dict)  # means of the last validation
    pulled: list[list[float]] = field(default_factory=list)  # [arm, its probability] of the round under way
    improvements: list[float] = field(default_factory=list)  # of every round so far
    rounds: int = 0


class DynaOpt:
    """A `RewardMix`. N + 1 arms: arm i raises objective i's weight, the last leaves the weights alone.

    A round lasts from one validation to the next. Its reward is the mean improvement of the objectives' validation
    scores, scaled to [0, 1] by the quantiles of the improvements so far; Exp3 credits it to the arm pulled when the
    round began. The published port (`preset: paper`) pulls eight times a round and credits the bare improvement to each
    pull: a few hundredths, which barely move the arms, while the weights walk at random.
    """

    def __init__(self, names: tuple[str, ...], seed: int, preset: Preset = "default") -> None:
        self._names, self._seed = names, seed
        self._bumps = PUBLISHED_BUMPS if preset == "paper" else 1
        self._scaled = preset != "paper"
        self._state = _State(dict.fromkeys(names, 1.0 / len(names)), [0.0] * (len(names) + 1))

    @property
    def weights(self) -> Mapping[str, float]:
        return self._state.weights

    @property
    def probabilities(self) -> list[float]:
        """Of the arms."""
        arms = self._state.arms
        most = max(arms)
        shares = [math.exp(arm - most) for arm in arms]
        total = math.fsum(shares)
        return [(1 - GAMMA) * share / total + GAMMA / len(arms) for share in shares]

    def validated(self, means: Mapping[str, float]) -> None:
        """Ends a round and begins the next."""
        state = self._state
        if state.last:
            improvement = statistics.fmean(means[name] - state.last[name] for name in self._names)
            reward = self._reward(improvement)
            for arm, probability in state.pulled:
                state.arms[int(arm)] += GAMMA * reward / probability / len(state.arms)
            state.improvements.append(improvement)
        state.last = dict(means)
        generator = random.Random(derive(self._seed, "dynaopt", state.rounds))
        state.pulled = [self._pull(generator) for _ in range(self._bumps)]
        state.rounds += 1

    def _reward(self, improvement: float) -> float:
        if not self._scaled:
            return improvement
        past = sorted([*self._state.improvements, improvement])
        low, high = _quantile(past, _LOW), _quantile(past, _HIGH)
        if high <= low:
            return 0.5  # nothing to compare with yet
        return min(1.0, max(0.0, (improvement - low) / (high - low)))

    def _pull(self, generator: random.Random) -> list[float]:
        probabilities = self.probabilities
        arm = generator.choices(range(len(probabilities)), probabilities)[0]
        if arm < len(self._names):
            raised = {n: w + BUMP * (n == self._names[arm]) for n, w in self._state.weights.items()}
            total = math.fsum(raised.values())
            self._state.weights = {name: weight / total for name, weight in raised.items()}
        return [arm, probabilities[arm]]

    def state(self) -> dict[str, Any]:
        return asdict(self._state)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._state = _State(**state)


def _quantile(ordered: list[float], share: float) -> float:
    """Linear between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
