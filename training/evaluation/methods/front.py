"""Quality measures of a Pareto front: the objectives' scores that a grid of weights reaches.

All measures take points with one score in [0, 1] an objective, and more is better. The worst that a score can be is 0,
so the volume is measured from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.search.score_table import Array

STEPS = 10  # of a weight from 0 to 1


@dataclass(frozen=True, slots=True)
class Front:
    """`weights` [K, N] sum to 1 each, `scores` [K, N] are what they reached in the mean over the prompts."""

    weights: Array
    scores: Array

    @property
    def hypervolume(self) -> float:
        return hypervolume(self.scores)

    @property
    def mean_inner_product(self) -> float:
        """The inner product of each weight vector and its scores."""
        return float((self.weights * self.scores).sum(axis=1).mean())

    @property
    def cover(self) -> float:
        """Distinct scores that no other point beats, over all points: whether other weights give other trade-offs."""
        return len(np.unique(self.scores[undominated(self.scores)], axis=0)) / len(self.scores)


def undominated(scores: Array) -> np.ndarray:
    """Which of the points [K, N] are not dominated by another one, [K] of bool."""
    at_least = (scores[:, None, :] >= scores[None, :, :]).all(axis=2)  # [K, K]: the first reaches the second
    beyond = (scores[:, None, :] > scores[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & beyond).any(axis=0))


def hypervolume(scores: Array) -> float:
    """The volume of everything that some point of [K, N] reaches, from 0 on: 1 when one is perfect in all objectives.

    Sliced along the last objective: between two heights it is the volume of what stands higher, in one objective less.
    """
    points = scores[(scores > 0).all(axis=1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[undominated(points)]
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = [*points[:, -1].tolist(), 0.0]
    return sum(
        (heights[number] - heights[number + 1]) * hypervolume(points[: number + 1, :-1])
        for number in range(len(points))
        if heights[number] > heights[number + 1]
    )


def as_values(names: Sequence[str], front: Front) -> Mapping[str, object]:
    """For `cell.json`: the measures and every point, by the objectives' names."""
    rows = zip(front.weights.tolist(), front.scores.tolist(), strict=True)
    return {
        "hypervolume": front.hypervolume,
        "mean_inner_product": front.mean_inner_product,
        "cover": front.cover,
        "points": [
            {"weights": dict(zip(names, weights, strict=True)), "scores": dict(zip(names, scores, strict=True))}
            for weights, scores in rows
        ],
    }
