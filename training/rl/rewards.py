"""Scores in [0, 1] -> rewards: raw, log, or standardised by the objective's own running statistics; and the weighting
of several scorers' rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training.rl.settings import Transform

Scores = dict[str, list[list[float]]]  # scorer -> [prompts][replies of a prompt]

LOG_RANGE = (1e-4, 0.9999)  # method.md section 2
_LEAST_DEVIATION = 0.01  # least deviation of scores: below it noise would be amplified to the size of a signal


@dataclass(slots=True)
class RunningStatistics:
    """Count, mean and sum of squared deviations, updated one number at a time (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        for value in values:
            self.count += 1
            delta = value - self.mean
            self.mean += delta / self.count
            self.squares += delta * (value - self.mean)

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def to_rewards(scores: Sequence[float], kind: Transform, statistics: RunningStatistics) -> list[float]:
    """One reward per score. The scores are added to `statistics` first, whatever the kind."""
    statistics.add(scores)
    if kind == "log":
        low, high = LOG_RANGE
        return [math.log(min(max(score, low), high)) for score in scores]
    if kind == "standardised":
        deviation = max(statistics.deviation, _LEAST_DEVIATION)
        return [(score - statistics.mean) / deviation for score in scores]
    return list(scores)


class RewardMix(Protocol):
    """Scorer -> weight of its reward. A checkpoint holds `state`, JSON values."""

    @property
    def weights(self) -> Mapping[str, float]: ...

    def begin_step(self) -> None:
        """Called before the rewards of a step are summed."""

    def validated(self, scores: Scores, step: int) -> None:
        """Called with the scores of every validation. step: steps taken before it; 0 is the base's validation."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class FixedMix:
    """Constant weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights: Mapping[str, float] = dict(weights)

    @classmethod
    def even(cls, names: tuple[str, ...]) -> FixedMix:
        """1 / N each (Uniform Weighted, method.md section 5)."""
        return cls(dict.fromkeys(names, 1.0 / len(names)))

    def begin_step(self) -> None:
        pass

    def validated(self, scores: Scores, step: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass
