"""The comparison of candidates, chosen on the search prompts, on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.search.bootstrap import Interval, interval, resamples
from training.search.score_table import Goal, ScoreTable
from training.search.strategies.spaces import Point


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights with a name, and their scores on the search prompts."""

    name: str
    point: Point
    search_score: float
    search_means: Mapping[str, float]


def compared(
    candidates: Sequence[Candidate],
    tables: Sequence[ScoreTable],
    objectives: Sequence[str],
    goal: Goal,
    *,
    clusters: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """One entry per candidate; the others are compared with the first.

    Args:
        tables: of the held-out prompts, one per candidate, the same prompts in the same order.
        clusters: of each of them, its dialogue or itself.

    Intervals are bootstrapped over prompts in their dialogues; `first_minus_this` is paired: both methods are
    resampled with the same prompts.
    """
    draws = resamples(tables[0].prompts, clusters=clusters, seed=seed)
    first = tables[0]
    entries = []
    for candidate, table in zip(candidates, tables, strict=True):

        def score(prompts: Any, table: ScoreTable = table) -> float:
            return goal(table.taken(prompts))

        def gain(prompts: Any, table: ScoreTable = table) -> float:
            return goal(first.taken(prompts)) - goal(table.taken(prompts))

        entry: dict[str, Any] = {
            "name": candidate.name,
            "weights": dict(zip(objectives, candidate.point, strict=True)),
            "search": {"score": candidate.search_score, "means": dict(candidate.search_means)},
            "held_out": {**_shown(interval(score, draws)), "means": table.means},
        }
        if table is not first:
            entry["first_minus_this"] = _shown(interval(gain, draws))
        entries.append(entry)
    return entries


def _shown(found: Interval) -> dict[str, Any]:
    return {"score": found.estimate, "interval": [found.low, found.high]}
