"""A person's weights, learned from the drafts they took: a Bayesian Bradley-Terry model over the weight simplex.

A person has a point w* on the simplex and prefers drafts whose weights are near it: a draft's worth is
-|w - w*|^2 s. Of the drafts shown they take each with probability softmax(worth); of two that is Bradley and Terry's
(1952) sigmoid of the difference. The sharpness s is unknown too. The posterior is computed on a grid of points and
sharpnesses, with a uniform prior over both; the grid is the only approximation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emorl_core.choices.outline import hull
from emorl_core.choices.record import Comparison
from emorl_core.errors import InvalidRequest

Array = NDArray[np.float64]
SHARPNESS = (2.0, 5.0, 10.0, 20.0, 40.0)
MAX_POINTS = 1500
MIN_RESOLUTION = 4
CREDIBLE = 0.9


@dataclass(frozen=True, slots=True)
class LearnedWeights:
    """`weights`: the posterior's mean. `deviation`: its standard deviation by objective. `region`: the smallest and the
    largest weight of each objective among the likeliest points, which together hold `CREDIBLE` of the posterior.
    `outline`: with three objectives, the corners of those points' convex hull, in order, as weights in the order of
    `weights`; else None. `choices`: how many it was learned from."""

    weights: dict[str, float]
    deviation: dict[str, float]
    region: dict[str, tuple[float, float]]
    outline: list[tuple[float, ...]] | None
    choices: int

    def origin(self, by: str, user: str) -> dict[str, Any]:
        """For a profile."""
        return {
            "by": by,
            "user": user,
            "choices": self.choices,
            "deviation": self.deviation,
            "region": {name: list(bounds) for name, bounds in self.region.items()},
            "credible": CREDIBLE,
        }


class Preference:
    """The posterior of one person's weights."""

    def __init__(self, objectives: Sequence[str]) -> None:
        """Raises `InvalidRequest` for fewer than two objectives, and for more than a grid can hold."""
        self.objectives = tuple(objectives)
        count = len(self.objectives)
        sizes = range(1, 101) if count > 1 else range(0)
        resolution = max((r for r in sizes if math.comb(r + count - 1, count - 1) <= MAX_POINTS), default=0)
        if resolution < MIN_RESOLUTION:
            raise InvalidRequest(
                f"{count} objectives; allowed: from 2 to as many as {MAX_POINTS} grid points hold", param="objectives"
            )
        self.points: Array = grid(count, resolution)  # [P, K]
        self._log = np.zeros((len(self.points), len(SHARPNESS)))  # [P, S] log posterior, up to a constant
        self.count = 0

    def take(self, shown: Array, taken: int) -> None:
        """Update on one choice: of drafts with these weights [D, K], sum 1 each, number `taken` was taken."""
        self._log += self._log_chances(shown)[:, :, taken]
        self.count += 1

    def learn(self, choices: Sequence[Comparison]) -> None:
        """The posterior after these choices. Only those among several drafts of which one was taken count."""
        for choice in choices:
            if choice.taken is not None and len(choice.shown) > 1:
                self.take(np.array([self.vector(each.weights) for each in choice.shown]), choice.taken)

    def vector(self, weights: Mapping[str, float]) -> Array:
        """Weights projected onto the objectives' simplex: other names (the bare model) are dropped."""
        vector = np.array([weights.get(name, 0.0) for name in self.objectives])
        largest = vector.max()
        if not largest > 0.0:
            return np.full(len(vector), 1.0 / len(vector))
        vector /= largest  # first, or huge numbers would overflow in the sum
        return vector / vector.sum()

    def result(self) -> LearnedWeights:
        chances = self._chances().sum(axis=1)  # [P]
        mean = chances @ self.points
        deviation = np.sqrt(np.maximum(chances @ (self.points - mean) ** 2, 0.0))
        order = np.argsort(-chances)
        inside = self.points[order[: int(np.searchsorted(np.cumsum(chances[order]), CREDIBLE)) + 1]]
        bounds = zip(inside.min(axis=0).tolist(), inside.max(axis=0).tolist(), strict=True)
        return LearnedWeights(
            dict(zip(self.objectives, mean.tolist(), strict=True)),
            dict(zip(self.objectives, deviation.tolist(), strict=True)),
            dict(zip(self.objectives, bounds, strict=True)),
            hull(inside) if len(self.objectives) == 3 else None,
            self.count,
        )

    def next_pair(self, candidates: Array, without: Collection[tuple[int, int]] = ()) -> tuple[int, int]:
        """The pair of these weight vectors [C, K] whose comparison is most informative: the one with the largest mutual
        information between the answer and the unknowns. Ties go to the first pair.

        without: pairs to leave out, in either order. Raises `InvalidRequest` where no pair is left.
        """
        seen = {tuple(sorted(pair)) for pair in without}
        left = [pair for pair in itertools.combinations(range(len(candidates)), 2) if pair not in seen]
        if not left:
            raise InvalidRequest(f"candidates has {len(candidates)}; no pair of them is left", param="candidates")
        chances = self._chances()
        worth = -_distances(self.points, candidates)  # [P, C]
        pairs = np.array(left)
        gap = worth[:, pairs[:, 0]] - worth[:, pairs[:, 1]]  # [P, pairs]
        mean, doubt = np.zeros(len(pairs)), np.zeros(len(pairs))
        for s, sharpness in enumerate(SHARPNESS):
            first = 1.0 / (1.0 + np.exp(-sharpness * gap))
            mean += chances[:, s] @ first
            doubt += chances[:, s] @ _entropy(first)
        best = pairs[int(np.argmax(_entropy(mean) - doubt))]
        return int(best[0]), int(best[1])

    def _chances(self) -> Array:
        """The posterior [P, S], sum 1."""
        raised: Array = np.exp(self._log - self._log.max())
        return raised / raised.sum()

    def _log_chances(self, shown: Array) -> Array:
        """log P(taken | point, sharpness), [P, S, D]."""
        worth = -_distances(self.points, shown)[:, None, :] * np.array(SHARPNESS)[None, :, None]
        top = worth.max(axis=2, keepdims=True)
        logs: Array = worth - top - np.log(np.exp(worth - top).sum(axis=2, keepdims=True))
        return logs


def grid(count: int, resolution: int) -> Array:
    """Every weight vector of steps 1 / resolution, sum 1: [points, count]."""
    bars = itertools.combinations(range(resolution + count - 1), count - 1)
    steps = [np.diff((-1, *each, resolution + count - 1)) - 1 for each in bars]
    return np.array(steps, dtype=np.float64) / resolution


def _distances(points: Array, others: Array) -> Array:
    """Squared, [P, others]."""
    squared: Array = ((points[:, None, :] - others[None, :, :]) ** 2).sum(axis=2)
    return squared


def _entropy(chance: Array) -> Array:
    """The entropy of a coin with this probability, in nats."""
    held = np.clip(chance, 1e-12, 1.0 - 1e-12)
    entropy: Array = -(held * np.log(held) + (1.0 - held) * np.log(1.0 - held))
    return entropy
