"""Intervals and tests over trainings and prompts at once, by a hierarchical bootstrap that no library provides.

All seeds' models answer the same prompts, so seeds and prompts are crossed; prompts of one dialogue are dependent.
Letters: S seeds, P prompts, C clusters of prompts (dialogues, or single prompts), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.search.bootstrap import CONFIDENCE, Interval
from training.search.score_table import Array

RESAMPLES = 4999
_ROUNDING = 1e-12  # smaller differences between scores count as 0


@dataclass(frozen=True, slots=True)
class Inference:
    """`p`: two-sided p-value that the mean is 0."""

    interval: Interval
    p: float


def over_trainings_and_prompts(
    values: Array, clusters: Sequence[int], *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Inference:
    """Inference about the mean of `values` [S, P]; for two methods, pass their differences.

    A hierarchical bootstrap: clusters are drawn with replacement, and trainings from a normal distribution with the
    variance of the seeds' means, since a few seeds are too few to resample. It is studentised (bootstrap-t, Efron &
    Tibshirani 1993): each resample's deviation is divided by its own standard error, because the standard error from a
    few seeds is itself uncertain. For five trainings without a difference, a test at 5 % finds one in 3 to 8 %
    (tests/learn/test_hierarchy.py).

    Args:
        clusters: cluster number of each prompt, [P], below C.

    Raises ValueError: fewer than two seeds or two clusters.
    """
    numbers = np.asarray(clusters)
    sizes = np.bincount(numbers).astype(np.float64)  # [C]
    count, groups = values.shape[0], len(sizes)
    if count < 2 or groups < 2:
        raise ValueError(f"{count} seeds and {groups} clusters of prompts; allowed: two of each")
    mean = float(values.mean())
    sums = np.stack([np.bincount(numbers, weights=row, minlength=groups) for row in values])  # [S, C]
    # The mean is a ratio (sum / prompts); this is its linearisation, whose mean over seeds and clusters is 0.
    parts = (sums - mean * sizes) / sizes.mean()
    parts[np.abs(parts) < _ROUNDING] = 0.0
    by_seed, by_cluster = parts.mean(axis=1), parts.mean(axis=0)
    of_seeds, of_clusters = by_seed.var(ddof=1) / count, by_cluster.var(ddof=1) / groups
    # Noise of single cells enters the means of both seeds and clusters; count it once, with the seeds.
    cells = parts - by_seed[:, None] - by_cluster
    of_cells = (cells**2).sum() / ((count - 1) * (groups - 1) * count * groups)
    own = max(0.0, 1.0 - of_cells / of_clusters) if of_clusters else 0.0
    error = float(np.sqrt(of_seeds + own * of_clusters))

    generator = np.random.Generator(np.random.PCG64(seed))
    seeds = by_seed.std(ddof=1) * generator.standard_normal((resamples, count))
    prompts = np.sqrt(own) * by_cluster[generator.integers(0, groups, (resamples, groups))]
    errors = np.sqrt(seeds.var(axis=1, ddof=1) / count + prompts.var(axis=1, ddof=1) / groups)
    errors = np.where(errors > 0, errors, error)  # a resample without variance gets the sample's error
    ratios = _ratios(np.abs(seeds.mean(axis=1) + prompts.mean(axis=1)), errors)
    reach = float(np.quantile(ratios, confidence, method="higher")) * error if error else 0.0
    observed = _ratios(np.array([abs(mean)]), np.array([error]))[0]
    p = (1 + int(np.sum(ratios >= observed))) / (resamples + 1)
    return Inference(Interval(mean, mean - reach, mean + reach), p)


def _ratios(deviations: Array, errors: Array) -> Array:
    """Deviation / error, with 0 / 0 = 0."""
    sound = np.where(errors > 0, errors, 1.0)
    return np.where(errors > 0, deviations / sound, np.where(deviations > 0, np.inf, 0.0))
