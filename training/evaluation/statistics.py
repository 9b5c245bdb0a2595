"""Scores per prompt, seed and method -> means with intervals, spread over seeds, and paired tests.

Two kinds of chance are kept apart. Intervals and tests are over *prompts*: what other prompts like these would give,
with the trained models as they are. The spread is over *seeds*: what training again would give.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.search.bootstrap import Indices, Interval, mean_interval
from training.search.score_table import Array

PERMUTATIONS = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """One column of one method. `by_seed`: seed -> one number per prompt, [prompts], the same ones for every seed."""

    by_seed: Mapping[int, Array]

    def over_seeds(self, seeds: Sequence[int] | None = None) -> Array:
        """Mean over seeds of every prompt's number, [prompts]."""
        return np.mean([self.by_seed[seed] for seed in (self.by_seed if seeds is None else seeds)], axis=0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """`interval`: of the mean over prompts and seeds, over prompts. `spread`: sample standard deviation of the seeds'
    means, None with one seed."""

    interval: Interval
    seeds: Mapping[int, float]
    spread: float | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "mean": self.interval.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "spread": self.spread,
            "seeds": {str(seed): mean for seed, mean in self.seeds.items()},
        }


def estimated(answers: Answers, draws: Indices) -> Estimate:
    """draws: `bootstrap.resamples` of the prompts, the same for every column."""
    means = {seed: float(np.mean(values)) for seed, values in answers.by_seed.items()}
    spread = statistics.stdev(means.values()) if len(means) > 1 else None
    return Estimate(mean_interval(answers.over_seeds(), draws), means, spread)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reference minus other on the same prompts, over the seeds that both have. `p` is of a two-sided permutation test,
    `p_holm` corrected for all comparisons made together."""

    reference: str
    other: str
    column: str
    difference: Interval
    p: float
    p_holm: float
    seeds: tuple[int, ...]
    seeds_ahead: int  # seeds in which the reference's mean was larger

    def as_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "other": self.other,
            "column": self.column,
            "difference": self.difference.estimate,
            "low": self.difference.low,
            "high": self.difference.high,
            "p": self.p,
            "p_holm": self.p_holm,
            "seeds": list(self.seeds),
            "seeds_ahead": self.seeds_ahead,
        }


def comparisons(
    columns: Mapping[str, Mapping[str, Answers]], reference: str, draws: Indices, *, seed: int = 0
) -> list[Comparison]:
    """The reference against every other method, in every column; one family for the correction.

    Args:
        columns: column -> method -> answers.
    """
    found: list[tuple[str, str, Interval, float, tuple[int, ...], int]] = []
    for column, methods in columns.items():
        mine = methods.get(reference)
        for other, answers in methods.items() if mine is not None else ():
            common = tuple(s for s in mine.by_seed if s in answers.by_seed) if mine is not None else ()
            if other == reference or mine is None or not common:
                continue
            difference = mine.over_seeds(common) - answers.over_seeds(common)
            ahead = sum(bool(np.mean(mine.by_seed[s]) > np.mean(answers.by_seed[s])) for s in common)
            p = permutation_p(difference, seed=seed)
            found.append((other, column, mean_interval(difference, draws), p, common, ahead))
    corrected = holm([row[3] for row in found])
    return [
        Comparison(reference, other, column, interval, p, adjusted, common, ahead)
        for (other, column, interval, p, common, ahead), adjusted in zip(found, corrected, strict=True)
    ]


def permutation_p(differences: Array, *, count: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p-value that the mean of paired `differences` [prompts] is 0: their signs are drawn anew (Fisher 1935;
    the + 1 of Phipson & Smyth 2010 keeps it above 0)."""
    observed = abs(float(np.sum(differences)))
    generator = np.random.Generator(np.random.PCG64(seed))
    as_far = 0
    for start in range(0, count, 1000):
        size = min(1000, count - start)
        signs = generator.integers(0, 2, (size, len(differences))) * 2.0 - 1.0  # [size, prompts]
        # A sum in another order differs in its last bits; what is equal must count as equal.
        as_far += int(np.sum(np.abs(signs @ differences) >= observed - 1e-9))
    return (as_far + 1) / (count + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: corrected so that the chance of any false finding among all stays below the level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def across(values: Mapping[int, float]) -> dict[str, Any]:
    """A number that each seed has once (consumption, memory): its mean, and the spread over seeds."""
    numbers = list(values.values())
    return {
        "mean": statistics.fmean(numbers),
        "spread": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "seeds": {str(seed): value for seed, value in values.items()},
    }
