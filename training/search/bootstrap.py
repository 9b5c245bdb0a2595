"""Bootstrap intervals over prompts (Efron & Tibshirani 1993): percentile intervals, paired where two methods answered
the same prompts."""

from __future__ import annotations

from collections.abc import Callable
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


def resamples(size: int, *, count: int = RESAMPLES, seed: int = 0) -> Indices:
    """[count, size] indices below `size`, drawn with repetition. Use the same ones for everything that is compared:
    then differences are paired.

    Raises ValueError: a size or count below 1.
    """
    if size < 1 or count < 1:
        raise ValueError(f"a bootstrap of {count} resamples of {size} values")
    return np.random.Generator(np.random.PCG64(seed)).integers(0, size, (count, size))


def interval(statistic: Callable[[Indices], float], draws: Indices, *, confidence: float = CONFIDENCE) -> Interval:
    """Of `statistic`, which is computed from the indices of the values that count.

    With one value there is no spread to see, and the interval is that value.
    """
    everything = np.arange(draws.shape[1])
    values = np.array([statistic(draw) for draw in draws], dtype=np.float64)
    return _percentiles(float(statistic(everything)), values, confidence)


def mean_interval(values: Array, draws: Indices, *, confidence: float = CONFIDENCE) -> Interval:
    """Of the mean of `values` [size]; of a difference of means when the values are paired differences."""
    return _percentiles(float(np.mean(values)), np.asarray(values)[draws].mean(axis=1), confidence)


def _percentiles(estimate: float, values: Array, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: between 0 and 1")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))
