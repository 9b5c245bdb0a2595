"""Figures of the exam with confidence intervals: percentile bootstrap over clusters (Efron & Tibshirani 1993), because
replies in one dialogue or to one prompt are not independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 1000
_THRESHOLDS = 80  # candidates tried for each class
TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number in [0, 1] (a correlation: in [-1, 1]), its 95 % confidence interval, and the sample sizes."""

    value: float
    low: float
    high: float
    count: int  # pairs, or replies
    clusters: int


def accuracy(scores: Sequence[tuple[float, float]], clusters: Sequence[Hashable]) -> Figure:
    """Share of pairs (better, worse) in which the better one scores higher; a tie counts half."""
    won = np.array([0.5 * (1.0 + np.sign(better - worse)) for better, worse in scores])
    owner, draws = _draws(clusters)
    sums = draws @ _per_cluster(owner, np.stack([won, np.ones(len(won))], axis=1))  # [1 + draws, 2]
    return _figure(sums[:, 0] / sums[:, 1], len(won), draws)


def auc(scores: Sequence[float], levels: Sequence[float], clusters: Sequence[Hashable]) -> Figure:
    """Share of pairs with different levels in which the higher level has the higher score; a tie counts half."""
    owner, draws = _draws(clusters)
    score, level = np.array(scores), np.array(levels)
    asked = (level[:, None] > level[None, :]).astype(np.float64)  # [replies, replies]
    won = asked * 0.5 * (1.0 + np.sign(score[:, None] - score[None, :]))
    weight = draws[:, owner]  # [1 + draws, replies]
    with np.errstate(invalid="ignore"):
        return _figure(((weight @ won) * weight).sum(1) / ((weight @ asked) * weight).sum(1), len(score), draws)


def macro_f1(predicted: Sequence[int], truth: Sequence[int], classes: int, clusters: Sequence[Hashable]) -> Figure:
    """Unweighted mean of the classes' F1."""
    owner, draws = _draws(clusters)
    guess, true = np.eye(classes)[np.array(predicted)], np.eye(classes)[np.array(truth)]  # [replies, classes]
    hits, both = (draws @ _per_cluster(owner, part) for part in (guess * true, guess + true))
    with np.errstate(invalid="ignore"):
        return _figure(np.nanmean(2 * hits / both, axis=1), len(true), draws)


def rank_correlation(scores: Sequence[float], others: Sequence[float], clusters: Sequence[Hashable]) -> Figure:
    """Spearman's correlation. Ranks are computed once over all values; the bootstrap resamples them by cluster."""
    owner, draws = _draws(clusters)
    x, y = _ranks(scores), _ranks(others)
    sums = draws @ _per_cluster(owner, np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1))
    n, sx, sy, sxx, syy, sxy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((sxx - sx * sx / n) * (syy - sy * sy / n))
        return _figure((sxy - sx * sy / n) / spread, len(x), draws)


def best_thresholds(scores: Sequence[float], truth: Sequence[int], classes: int) -> list[float]:
    """classes - 1 ascending thresholds on the scores that maximise macro-F1, by coordinate ascent."""
    distinct = sorted(set(scores))
    between = [(low + high) / 2 for low, high in pairwise(distinct)] or distinct
    grid = between[:: math.ceil(len(between) / _THRESHOLDS)]
    found = [grid[(number + 1) * len(grid) // (classes + 1)] for number in range(classes - 1)]

    def quality(thresholds: Sequence[float]) -> float:
        return _plain_f1(classes_of(scores, thresholds), truth, classes)

    for _ in range(3):
        for number in range(classes - 1):
            tried = [sorted([*found[:number], at, *found[number + 1 :]]) for at in grid]
            found = max([found, *tried], key=quality)
    return found


def classes_of(scores: Sequence[float], thresholds: Sequence[float]) -> list[int]:
    """The class of each score: the number of thresholds that it exceeds."""
    return [sum(score > threshold for threshold in thresholds) for score in scores]


def _plain_f1(predicted: Sequence[int], truth: Sequence[int], classes: int) -> float:
    each = []
    for label in range(classes):
        hits = sum(p == label == t for p, t in zip(predicted, truth, strict=True))
        both = sum(p == label for p in predicted) + sum(t == label for t in truth)
        each.append(2 * hits / both if both else 0.0)
    return math.fsum(each) / classes


def _draws(clusters: Sequence[Hashable]) -> tuple[Any, Array]:
    """(each item's cluster number, how often each cluster was drawn [1 + RESAMPLES, clusters]); the first row is the
    original data."""
    numbers: dict[Hashable, int] = {}
    owner = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    size = len(numbers)
    drawn = np.random.Generator(np.random.PCG64(0)).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return owner, np.vstack([np.ones(size), drawn]).astype(np.float64)


def _per_cluster(owner: Any, values: Array) -> Array:
    """[items, columns] -> sums [clusters, columns]."""
    sums = np.zeros((int(owner.max()) + 1, values.shape[1]))
    np.add.at(sums, owner, values)
    return sums


def _figure(values: Array, count: int, draws: Array) -> Figure:
    """`values`: of the original data, then of the resamples; resamples without a value (NaN) are omitted."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(drawn, TAILS) if len(drawn) else (math.nan, math.nan)
    return Figure(float(values[0]), float(low), float(high), count, draws.shape[1])


def _ranks(values: Sequence[float]) -> Array:
    """Ranks; ties get their mean rank."""
    _, place, often = np.unique(np.array(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(often)
    return np.asarray((ends - (often - 1) / 2)[place], dtype=np.float64)
