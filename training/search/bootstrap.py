"""Bootstrap intervals over prompts (Efron & Tibshirani 1993): percentile intervals, paired where two methods answered
the same prompts. Prompts of one dialogue are drawn together, since they are not independent."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """`drawn` [count, C]: cluster numbers, drawn with replacement; `members`: the indices of each cluster's values."""

    drawn: Indices
    members: tuple[Indices, ...]

    def __iter__(self) -> Iterator[Indices]:
        """The indices of every resample's values."""
        for own in self.drawn:
            yield np.concatenate([self.members[cluster] for cluster in own])

    @property
    def size(self) -> int:
        """Values."""
        return sum(map(len, self.members))


def numbered(names: Sequence[Hashable]) -> list[int]:
    """Cluster names -> numbers from 0, in order of first appearance."""
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def resamples(size: int, *, clusters: Sequence[Hashable] | None = None, count: int = RESAMPLES, seed: int = 0) -> Draws:
    """`count` resamples of `size` values. Use the same ones for everything that is compared, so that differences are
    paired.

    Args:
        clusters: the cluster of each value; clusters are drawn as a whole. None: every value is its own cluster.

    Raises ValueError: a size or count below 1, or a wrong number of clusters.
    """
    if size < 1 or count < 1:
        raise ValueError(f"a bootstrap of {count} resamples of {size} values")
    numbers = np.array(numbered(range(size) if clusters is None else clusters))
    if len(numbers) != size:
        raise ValueError(f"{len(numbers)} clusters for {size} values")
    groups = int(numbers.max()) + 1
    members = tuple(np.flatnonzero(numbers == group) for group in range(groups))
    return Draws(np.random.Generator(np.random.PCG64(seed)).integers(0, groups, (count, groups)), members)


def interval(statistic: Callable[[Indices], float], draws: Draws, *, confidence: float = CONFIDENCE) -> Interval:
    """The interval of `statistic`, a function of the indices of a resample.

    With a single value the interval is that value.
    """
    values = np.array([statistic(draw) for draw in draws], dtype=np.float64)
    return _percentiles(float(statistic(np.arange(draws.size))), values, confidence)


def mean_interval(values: Array, draws: Draws, *, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of `values` [size], or of a difference of means if the values are paired differences."""
    values = np.asarray(values)
    sums = np.array([values[own].sum() for own in draws.members])
    sizes = np.array([len(own) for own in draws.members], dtype=np.float64)
    means = sums[draws.drawn].sum(axis=1) / sizes[draws.drawn].sum(axis=1)
    return _percentiles(float(np.mean(values)), means, confidence)


def _percentiles(estimate: float, values: Array, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: between 0 and 1")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))
