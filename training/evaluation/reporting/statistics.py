"""Scores per prompt, seed and method -> means with intervals, spread over seeds, and tests.

Two sources of variance are distinguished. The variance of *retraining* shows in seeds, and claims about methods need
it: with `FEWEST_SEEDS` or more, intervals and tests are over trainings and prompts. With fewer seeds only the variance
over *prompts*, for these trained models, can be estimated. Prompts of one dialogue count as one observation.

SciPy and statsmodels, the extra `evaluation`, have the tests; the hierarchy is `hierarchy.py`.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.evaluation.cells import EvaluationError
from training.evaluation.reporting.hierarchy import Inference, over_trainings_and_prompts
from training.search.bootstrap import CONFIDENCE, RESAMPLES, Draws, Interval, mean_interval
from training.search.score_table import Array

FEWEST_SEEDS = 5  # for a claim about methods
PERMUTATIONS = 9999


def check_installed() -> None:
    """Raises `EvaluationError` if SciPy or statsmodels is not installed."""
    for name in ("scipy", "statsmodels"):
        if importlib.util.find_spec(name) is None:
            raise EvaluationError(f'emorl evaluate needs {name}: pip install "emorl[evaluation]"', param="evaluation")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """One column of one method. `by_seed`: seed -> one number per prompt, [prompts], the same prompts for every
    seed."""

    by_seed: Mapping[int, Array]

    def over_seeds(self) -> Array:
        """Mean over seeds for each prompt, [prompts]."""
        return np.mean(list(self.by_seed.values()), axis=0)

    def less(self, other: Answers) -> Answers:
        """Differences per prompt, over the common seeds."""
        return Answers({s: own - other.by_seed[s] for s, own in self.by_seed.items() if s in other.by_seed})

    @property
    def means(self) -> dict[int, float]:
        return {seed: float(np.mean(values)) for seed, values in self.by_seed.items()}


@dataclass(frozen=True, slots=True)
class Estimate:
    """`interval`: of the mean over prompts and seeds; over trainings and prompts with `FEWEST_SEEDS`, otherwise over
    prompts. `spread`: sample standard deviation of the seeds' means, None with one seed."""

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


def estimated(answers: Answers, draws: Draws) -> Estimate:
    """draws: `bootstrap.resamples` of the prompts, the same for every column."""
    means = answers.means
    spread = statistics.stdev(means.values()) if len(means) > 1 else None
    whole = _inference(answers, draws)
    return Estimate(whole.interval if whole else mean_interval(answers.over_seeds(), draws), means, spread)


def _inference(answers: Answers, draws: Draws, seed: int = 0) -> Inference | None:
    """None with too few seeds, or if all prompts are from one dialogue."""
    if len(answers.by_seed) < FEWEST_SEEDS or len(draws.members) < 2:
        return None
    clusters = np.empty(draws.size, dtype=np.int64)
    for number, members in enumerate(draws.members):
        clusters[members] = number
    return over_trainings_and_prompts(np.stack(list(answers.by_seed.values())), clusters.tolist(), seed=seed)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reference minus other on the same prompts, over the common seeds.

    `p`: over trainings and prompts, `p_holm` corrected for all comparisons together; None with too few seeds for a
    claim, and then `difference` is over prompts only. `p_seeds`: t-test over the seeds' means, with the prompts fixed.
    `p_prompts`: sign-flip permutation over prompts, with these trained models fixed.
    """

    reference: str
    other: str
    column: str
    difference: Interval
    seeds: tuple[int, ...]
    seeds_ahead: int  # seeds in which the reference's mean was larger
    p: float | None
    p_holm: float | None
    p_seeds: float | None
    p_prompts: float

    @property
    def is_claim(self) -> bool:
        return self.p is not None

    def as_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "other": self.other,
            "column": self.column,
            "difference": self.difference.estimate,
            "low": self.difference.low,
            "high": self.difference.high,
            "seeds": list(self.seeds),
            "seeds_ahead": self.seeds_ahead,
            "claim": self.is_claim,
            "p": self.p,
            "p_holm": self.p_holm,
            "p_seeds": self.p_seeds,
            "p_prompts_of_these_models": self.p_prompts,
        }


def comparisons(
    columns: Mapping[str, Mapping[str, Answers]], reference: str, draws: Draws, *, seed: int = 0
) -> list[Comparison]:
    """The reference compared with every other method in every column; one family for the correction.

    Args:
        columns: column -> method -> answers.
    """
    found: list[tuple[str, str, Answers]] = []
    for column, methods in columns.items():
        mine = methods.get(reference)
        for other, answers in methods.items() if mine is not None else ():
            if other != reference and mine is not None and (difference := mine.less(answers)).by_seed:
                found.append((other, column, difference))
    inferences = [_inference(difference, draws, seed) for _, _, difference in found]
    corrected = iter(holm([inference.p for inference in inferences if inference is not None]))
    return [
        Comparison(
            reference,
            other,
            column,
            inference.interval if inference is not None else mean_interval(difference.over_seeds(), draws),
            tuple(difference.by_seed),
            sum(mean > 0 for mean in difference.means.values()),
            None if inference is None else inference.p,
            None if inference is None else next(corrected),
            over_seeds_p(list(difference.means.values())),
            sign_flip_p(np.array([difference.over_seeds()[own].sum() for own in draws.members]), seed=seed),
        )
        for (other, column, difference), inference in zip(found, inferences, strict=True)
    ]


def over_seeds_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of a t-test that the mean of the seeds' differences is 0; None with one seed, or if all
    differences are equal."""
    from scipy.stats import ttest_1samp

    if not any(differences):
        return 1.0 if len(differences) > 1 else None
    if len(set(differences)) < 2:
        return None
    return float(ttest_1samp(differences, 0.0).pvalue)


def sign_flip_p(differences: Array, *, seed: int = 0) -> float:
    """Two-sided p-value that the sum of paired `differences` is 0, by random sign flips (Fisher 1935), or by all of
    them if they are few."""
    from scipy.stats import permutation_test

    if len(differences) < 2 or not np.any(differences):
        return 1.0
    found = permutation_test(
        (differences,),
        lambda values, axis: np.sum(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.Generator(np.random.PCG64(seed)),
    )
    return float(found.pvalue)


def interval_of_items(values: Array, *, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of independent `values`; a single value is its own interval."""
    from scipy.stats import bootstrap

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean)
    generator = np.random.Generator(np.random.PCG64(seed))
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=generator
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: p-values corrected to control the family-wise error rate."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def across(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean and spread over seeds of a quantity with one value per seed (consumption, memory)."""
    numbers = list(values.values())
    return {
        "mean": statistics.fmean(numbers),
        "spread": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "seeds": {str(seed): value for seed, value in values.items()},
    }
