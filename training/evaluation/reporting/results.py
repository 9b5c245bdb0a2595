"""Scored cells -> the content of `results.json`, from which tables, CSV and plots are made.

All measured times are under `measured`; nothing else differs between a resumed run and an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from training.evaluation.cells import Cell
from training.evaluation.reporting import hierarchy
from training.evaluation.reporting.statistics import FEWEST_SEEDS, PERMUTATIONS, Answers, across, comparisons, estimated
from training.evaluation.scores import OF_ALL_REPLIES
from training.search.bootstrap import CONFIDENCE, RESAMPLES, Draws, resamples
from training.search.score_table import Array

FORMAT = "emorl-evaluation-results/1"
MEAN = "mean"
OBJECTIVES, JUDGES, TEXT = "objectives", "judges", "text"
BASELINES = "yardsticks"  # their key in the format
FRONT_MEASURES = ("hypervolume", "mean_inner_product", "cover", "prompts")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A cell and its scores per prompt, by group and column; empty for a failed cell."""

    cell: Cell
    scores: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


def scored(
    cell: Cell, objectives: Mapping[str, Array], judges: Mapping[str, Array], text: Mapping[str, Array]
) -> Scored:
    """Adds the means over objectives and over judges."""
    return Scored(cell, {OBJECTIVES: _with_mean(objectives), JUDGES: _with_mean(judges), TEXT: dict(text)})


def _with_mean(columns: Mapping[str, Array]) -> dict[str, Array]:
    if not columns:
        return {}
    return {**columns, MEAN: np.mean(list(columns.values()), axis=0)}


def results(
    cells: Mapping[str, Mapping[int, Scored]],
    *,
    about: Mapping[str, Any],
    clusters: Sequence[str],
    reference: str | None,
    baselines: Mapping[str, Scored] = MappingProxyType({}),
    left_out: Mapping[str, str] = MappingProxyType({}),
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """JSON values.

    Args:
        cells: method -> seed -> scored cell, in the order of the table.
        about: provenance (recipe, hashes, versions), included unchanged.
        clusters: of each held-out prompt, its dialogue or itself.
        reference: the method that the others are tested against; None: no tests.
        baselines: name -> scores shown beside the methods, without tests.
        left_out: methods that were not run -> why.
    """
    draws = resamples(len(clusters), clusters=clusters, seed=bootstrap_seed)
    methods = {name: _method(by_seed, draws) for name, by_seed in cells.items()}
    tested: dict[str, dict[str, Answers]] = {}
    for group in (OBJECTIVES, JUDGES):
        answers = {name: found for name, own in cells.items() if (found := _answers(own, group, MEAN)) is not None}
        if answers:
            tested[f"{group}.{MEAN}"] = answers
    made = comparisons(tested, reference, draws, seed=bootstrap_seed) if reference is not None else []
    return {
        "format": FORMAT,
        **about,
        "test_prompts": len(clusters),
        "reference": reference,
        "left_out": dict(left_out),
        "statistics": {
            "fewest_seeds_of_a_claim": FEWEST_SEEDS,
            "claims": sum(comparison.is_claim for comparison in made),
            "clusters_of_prompts": len(draws.members),
            "intervals": f"{CONFIDENCE:.0%}, with {FEWEST_SEEDS} seeds over trainings and prompts in their dialogues "
            f"(studentised bootstrap, {hierarchy.RESAMPLES} resamples); with fewer over prompts in their "
            f"dialogues, of these trained models only (percentile bootstrap, {RESAMPLES} resamples)",
            "tests": f"p and p, corrected: that bootstrap, and Holm's correction; over seeds: a t-test, the prompts as "
            f"they are; these models only: sign flips over dialogues, {PERMUTATIONS} draws",
            "comparisons": len(made),
            "bootstrap_seed": bootstrap_seed,
        },
        "methods": methods,
        BASELINES: {name: _baseline(own, draws) for name, own in baselines.items()},
        "comparisons": [comparison.as_dict() for comparison in made],
    }


def _answers(by_seed: Mapping[int, Scored], group: str, column: str) -> Answers | None:
    values = {seed: own.scores[group][column] for seed, own in by_seed.items() if column in own.scores.get(group, {})}
    return Answers(values) if values else None


def _method(by_seed: Mapping[int, Scored], draws: Draws) -> dict[str, Any]:
    done = {seed: own for seed, own in by_seed.items() if own.scores}
    failed = {str(seed): own.cell.reason or "no reason given" for seed, own in by_seed.items() if not own.scores}
    entry: dict[str, Any] = {"seeds": list(done), "failed": failed}
    if not done:
        return entry
    first = next(iter(done.values()))
    for group, columns in first.scores.items():
        entry[group] = {}
        for column in columns:
            answers = _answers(done, group, column)
            assert answers is not None  # the first cell has it
            entry[group][column] = estimated(answers, draws).as_dict()
            if column in OF_ALL_REPLIES:
                entry[group][column] |= {"low": None, "high": None}
    cell_of = {seed: own.cell for seed, own in done.items()}
    entry["weights"] = {str(seed): dict(cell.weights) if cell.weights else None for seed, cell in cell_of.items()}
    entry["combine"], entry["anchored"] = first.cell.combine, first.cell.anchored
    entry["consumption"] = {
        **{key: _across(cell_of, "consumption", key) for key in ("pairs", "prompts", "samples", "tokens")},
        "shared_with": list(first.cell.consumption.shared_with),
        "search_evaluations": _across(cell_of, "search", "evaluations"),
        "search_prompts": _across(cell_of, "search", "prompts"),
    }
    entry["inference"] = {key: _across(cell_of, "inference", key) for key in ("lane_row_steps", "tokens", "scored")}
    entry["memory"] = {key: _across(cell_of, "memory", key) for key in ("base", "adapters")}
    if first.cell.front is not None:
        entry["front"] = {key: _across(cell_of, "front", key) for key in FRONT_MEASURES}
    entry["curves"] = {
        str(seed): {name: [point.model_dump() for point in points] for name, points in cell.curve.items()}
        for seed, cell in cell_of.items()
    }
    entry["measured"] = {
        "training_seconds": _across(cell_of, "consumption", "seconds"),
        "search_seconds": _across(cell_of, "search", "seconds"),
        "inference_seconds": _across(cell_of, "inference", "seconds"),
        "ms_per_token": _across(cell_of, "inference", "ms_per_token"),
    }
    if all(cell.inference.first_token_ms is not None for cell in cell_of.values()):
        entry["measured"]["first_token_ms"] = _across(cell_of, "inference", "first_token_ms")
    return entry


def _baseline(own: Scored, draws: Draws) -> dict[str, Any]:
    """Its columns in the form of a method's, or why it failed."""
    entry = _method({own.cell.seed: own}, draws)
    if not own.scores:
        return {"failed": own.cell.reason}
    return {group: entry[group] for group in own.scores}


def _across(cells: Mapping[int, Cell], part: str, key: str) -> dict[str, Any]:
    # A method without a search counts as 0.
    return across({s: 0 if (own := getattr(cell, part)) is None else getattr(own, key) for s, cell in cells.items()})


def enough_seeds(found: Mapping[str, Any]) -> bool:
    """Whether some method has enough seeds for a claim about methods."""
    fewest = found["statistics"]["fewest_seeds_of_a_claim"]
    return any(len(own["seeds"]) >= fewest for own in found["methods"].values())


def failures(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(method, seed, reason) of every cell that failed."""
    return [(name, seed, why) for name, own in found["methods"].items() for seed, why in own["failed"].items()]


def columns_of(found: Mapping[str, Any], group: str) -> Sequence[str]:
    """The columns of a group, from the first method that has any."""
    return next((list(own[group]) for own in found["methods"].values() if own.get(group)), ())
