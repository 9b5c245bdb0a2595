"""Quality measures of a Pareto front, whose points are the scores for a grid of weights.

A point has one score in [0, 1] per objective; higher is better. The reference point of the hypervolume is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.search.score_table import Array

STEPS = 10  # steps of a weight from 0 to 1


@dataclass(frozen=True, slots=True)
class Front:
    """`weights` [K, N] sum to 1 each; `scores` [K, N] are their means over the prompts."""

    weights: Array
    scores: Array

    @property
    def hypervolume(self) -> float:
        return hypervolume(self.scores)

    @property
    def mean_inner_product(self) -> float:
        """Mean inner product of each weight vector and its scores."""
        return float((self.weights * self.scores).sum(axis=1).mean())

    @property
    def cover(self) -> float:
        """Number of distinct non-dominated scores / number of points: whether different weights give different
        trade-offs."""
        return len(np.unique(self.scores[undominated(self.scores)], axis=0)) / len(self.scores)


def undominated(scores: Array) -> np.ndarray:
    """Whether each of the points [K, N] is non-dominated, [K] of bool."""
    at_least = (scores[:, None, :] >= scores[None, :, :]).all(axis=2)  # [K, K]: row >= column in every objective
    beyond = (scores[:, None, :] > scores[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & beyond).any(axis=0))


def hypervolume(scores: Array) -> float:
    """Hypervolume of the points [K, N] from 0: 1 if one point is perfect in all objectives.

    Computed by slicing along the last objective: each slice is a hypervolume in one objective less, of the points above
    it.
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
    """For `cell.json`: the measures and all points, by the objectives' names."""
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
