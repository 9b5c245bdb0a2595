"""Exp3, a bandit that makes no assumption on where rewards come from (Auer et al. 2002)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random


class Exp3:
    """`logs`: logarithms of the arms' weights; all that a checkpoint needs."""

    def __init__(self, arms: int, gamma: float) -> None:
        """gamma: share of the pulls that go to all arms alike."""
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
        """An arm."""
        return generator.choices(range(len(self.logs)), self.probabilities)[0]

    def credit(self, arm: int, reward: float) -> None:
        """The weight of `arm`, pulled with its present probability p, times exp(gamma reward / (p K))."""
        self.logs[arm] += self._gamma * reward / self.probabilities[arm] / len(self.logs)

    def restore(self, logs: Sequence[float]) -> None:
        self.logs = list(logs)
