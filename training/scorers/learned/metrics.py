"""Metrics of a scorer, from its scores and the graded truth. Pure functions, each with its formula."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence


def ranking_accuracy(
    scores: Sequence[float],
    levels: Sequence[float],
    groups: Sequence[Hashable],
    *,
    better: float | None = None,
    worse: float | None = None,
) -> tuple[float, int]:
    """(share of pairs in which the higher level has the higher score, number of pairs). A tie counts half.

    Pairs are formed only within a group. `better` and `worse` restrict the pairs to those two levels.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    won, pairs = 0.0, 0
    for indices in members.values():
        for high in indices:
            for low in indices:
                if levels[high] <= levels[low]:
                    continue
                if (better is not None and levels[high] != better) or (worse is not None and levels[low] != worse):
                    continue
                pairs += 1
                won += 1.0 if scores[high] > scores[low] else 0.5 if scores[high] == scores[low] else 0.0
    return (won / pairs if pairs else math.nan), pairs


def macro_f1(predicted: Sequence[int], truth: Sequence[int], classes: int) -> tuple[float, list[float]]:
    """(unweighted mean of the classes' F1, each class's F1). A class that is neither predicted nor true is omitted from
    the mean; one that is only predicted or only true counts as 0."""
    each: list[float] = []
    for label in range(classes):
        hits = sum(p == label == t for p, t in zip(predicted, truth, strict=True))
        misses = sum((p == label) != (t == label) for p, t in zip(predicted, truth, strict=True))
        each.append(2 * hits / (2 * hits + misses) if hits + misses else math.nan)
    present = [value for value in each if not math.isnan(value)]
    return (math.fsum(present) / len(present) if present else math.nan), each


def brier(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Mean squared difference between score and target, both in [0, 1]; 0 is perfect (Brier 1950)."""
    return math.fsum((s - t) ** 2 for s, t in zip(scores, targets, strict=True)) / len(scores)


def expected_calibration_error(scores: Sequence[float], targets: Sequence[float], bins: int = 10) -> float:
    """Mean over equal-width bins of |mean score - mean target|, weighted by the bins' sizes (Naeini et al. 2015)."""
    held: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for score, target in zip(scores, targets, strict=True):
        held[min(bins - 1, int(score * bins))].append((score, target))
    return math.fsum(abs(math.fsum(s - t for s, t in pairs)) for pairs in held.values()) / len(scores)
