"""Chance over trainings and over prompts at once: the hierarchy that no library has ready.

Every seed's model answers the same prompts, so seeds and prompts are crossed; prompts of one dialogue hang together.
Letters: S seeds, P prompts, C clusters of prompts (dialogues, or single prompts), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.search.bootstrap import CONFIDENCE, Interval
from training.search.score_table import Array

RESAMPLES = 4999
_ROUNDING = 1e-12  # of scores: differences below it are none


@dataclass(frozen=True, slots=True)
class Inference:
    """`p`: two-sided, that the mean is 0."""

    interval: Interval
    p: float


def over_trainings_and_prompts(
    values: Array, clusters: Sequence[int], *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Inference:
    """Of the mean of `values` [S, P]; for two methods, of the differences between them.

    The pigeonhole bootstrap (Owen 2007): seeds are drawn with repetition, and so are clusters. With few seeds its
    variance is too small, so it is studentised (bootstrap-t, Efron & Tibshirani 1993): the deviation of every resample
    is divided by its own standard error, and what those ratios reach says how many standard errors are likely. Where
    five trainings do not differ, a test at 5 % finds a difference in 3 to 8 % (tests/learn/test_hierarchy.py).

    Args:
        clusters: number of each prompt's cluster, [P], below C.

    Raises ValueError: fewer than two seeds or two clusters.
    """
    numbers = np.asarray(clusters)
    sizes = np.bincount(numbers).astype(np.float64)  # [C]
    count, groups = values.shape[0], len(sizes)
    if count < 2 or groups < 2:
        raise ValueError(f"{count} seeds and {groups} clusters of prompts; allowed: two of each")
    mean = float(values.mean())
    sums = np.stack([np.bincount(numbers, weights=row, minlength=groups) for row in values])  # [S, C]
    # The mean is a ratio, sum / prompts; this is its linear part, whose mean over seeds and clusters is 0.
    parts = (sums - mean * sizes) / sizes.mean()
    parts[np.abs(parts) < _ROUNDING] = 0.0
    _, error = _mean_and_error(parts, np.ones((1, count)), np.ones((1, groups)))
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn_seeds = generator.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)  # [R, S]
    drawn_clusters = generator.multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)  # [R, C]
    deviations, errors = _mean_and_error(parts, drawn_seeds, drawn_clusters)
    ratios = _ratios(np.abs(deviations), errors)
    reach = float(np.quantile(ratios, confidence, method="higher") * error[0]) if error[0] else 0.0
    observed = _ratios(np.abs([mean]), error)[0]
    p = (1 + int(np.sum(ratios >= observed))) / (resamples + 1)
    return Inference(Interval(mean, mean - reach, mean + reach), p)


def _mean_and_error(parts: Array, seeds: Array, clusters: Array) -> tuple[Array, Array]:
    """Mean and standard error of every resample, [R]. seeds [R, S], clusters [R, C]: how often each was drawn.

    The variance of the mean of a crossed table: that of the rows' means, plus that of the columns', less that of the
    cells, which both of them hold. It is never below one of the two.
    """
    count, groups = parts.shape
    rows, columns = clusters @ parts.T / groups, seeds @ parts / count  # [R, S], [R, C]
    mean = (rows * seeds).sum(1) / count
    of_rows = (seeds * (rows - mean[:, None]) ** 2).sum(1) / count
    of_columns = (clusters * (columns - mean[:, None]) ** 2).sum(1) / groups
    of_all = ((seeds @ parts**2) * clusters).sum(1) / (count * groups) - mean**2
    of_cells = np.maximum(0.0, of_all - of_rows - of_columns)
    by_seed, by_cluster = of_rows / (count - 1), of_columns / (groups - 1)
    both = of_cells / ((count - 1) * (groups - 1))
    return mean, np.sqrt(np.maximum(by_seed + by_cluster - both, np.maximum(by_seed, by_cluster)))


def _ratios(deviations: Array, errors: Array) -> Array:
    """0 / 0 is 0: what never varies does not deviate."""
    sound = np.where(errors > 0, errors, 1.0)
    return np.where(errors > 0, deviations / sound, np.where(deviations > 0, np.inf, 0.0))
