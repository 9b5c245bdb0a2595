"""A search whose result is a head that predicts weights for each prompt, compared like any other search."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from emorl_core.bundles.predictor import Predictor
from emorl_core.ensemble import Ensemble
from emorl_core.scorers.asking import Panel
from emorl_core.weights import BASE
from training.data.records import Record
from training.progress import Progress
from training.search.evaluations.evaluator import EvaluatingOver, Evaluator
from training.search.evaluations.in_process import over_ensemble
from training.search.inputs import Inputs
from training.search.predictor import STEPS, fit, targets
from training.search.report import Candidate
from training.search.run import SearchSettings, check_objectives, write_report
from training.search.score_table import Array, ScoreTable, parse_goal
from training.search.strategies.spaces import Point, grid_points

_AT_ONCE = 64  # prompts in the engine


@dataclass(frozen=True, slots=True)
class Fitted:
    predictor: Predictor
    report: dict[str, Any]


def run_per_prompt(
    ensemble: Ensemble,
    inputs: Inputs,
    settings: SearchSettings,
    folder: Path,
    *,
    objectives: Sequence[str],
    progress: Progress = lambda stage, done, total: None,
    evaluating: EvaluatingOver | None = None,
) -> Fitted:
    """Try a grid on every search prompt, fit the head, compare it with fixed weights on held-out prompts, and write
    `report.json` into `folder`.

    Args:
        evaluating: makes the evaluators; None: the ensemble and the scorers in this process.

    Raises:
        SearchError, ScorerError, InvalidRequest, EngineError: one line each.
    """
    names = tuple(objectives)
    check_objectives(ensemble.objectives, names)
    goal = parse_goal(settings.goal, tuple(inputs.scorers))
    started = time.perf_counter()
    points = grid_points(len(names), STEPS)
    even = (1.0 / len(names),) * len(names)
    total = len(points) * len(inputs.search)
    done = 0

    def settled(texts: int) -> None:
        nonlocal done
        done = min(total, done + texts)
        progress("texts", done, total)

    over = evaluating or over_ensemble(ensemble, names, inputs.scorers, max_new_tokens=settings.max_new_tokens)
    evaluator, held_out = (
        Evaluator(over(records, told))
        for records, told in ((inputs.search, settled), (inputs.held_out, lambda texts: None))
    )
    tables = dict(zip(points, evaluator.tables(points), strict=True))
    scores = np.stack([table.scores.mean(axis=1) for table in tables.values()], axis=1)  # [P, K]
    searched, judged_on = (
        base_states(ensemble, [record.prompt for record in records]) for records in (inputs.search, inputs.held_out)
    )
    predictor = fit(searched, targets(scores, points))
    said = [predictor.chosen(state) for state in judged_on]
    own, own_held_out = (
        _answered(ensemble, names, records, weights, inputs, settings)
        for records, weights in ((inputs.search, map(predictor.chosen, searched)), (inputs.held_out, said))
    )

    def fixed(name: str, point: Point) -> Candidate:
        table = tables.get(point) or evaluator.tables([point])[0]
        return Candidate(name, point, goal(table), table.means)

    mean: Point = tuple(np.mean(said, axis=0).tolist())  # of the weights that the held-out prompts got
    singles = [point for point in points if max(point) == 1.0]
    candidates = [
        Candidate("predicted", mean, goal(own), own.means),
        fixed("best single objective", max(singles, key=lambda point: goal(tables[point]))),
        fixed("uniform", even),
        fixed("best of the grid", max(points, key=lambda point: goal(tables[point]))),
    ]
    judged = [own_held_out, *held_out.tables([candidate.point for candidate in candidates[1:]])]
    report = write_report(
        folder, ensemble, names, inputs, settings, candidates, judged,
        method=settings.method,
        space="simplex",
        levels=None,
        evaluations={
            "requested": len(points),
            "distinct_points": len(points),
            "resumed": 0,
            **asdict(evaluator.counts),
        },
        started=started,
    )  # fmt: skip
    return Fitted(predictor, report)


def base_states(ensemble: Ensemble, prompts: Sequence[str]) -> Array:
    """The predictor's inputs: the bare base's last hidden state of each prompt, [P, D]."""
    states: dict[int, Array] = {}

    def note(place: int, state: Tensor) -> tuple[float, ...]:
        states[place] = state.double().cpu().numpy()
        return bare

    bare = ensemble.resolve({BASE: 1.0}).vector
    requests = (
        replace(
            ensemble.request(prompt, weights={BASE: 1.0}, max_new_tokens=1, seed=0, stream=False),
            predict=partial(note, place),
        )
        for place, prompt in enumerate(prompts)
    )
    for _ in ensemble.ends(requests, at_once=_AT_ONCE):
        pass
    return np.stack([states[place] for place in range(len(prompts))])


def _answered(
    ensemble: Ensemble,
    names: Sequence[str],
    records: Sequence[Record],
    said: Iterable[Sequence[float]],
    inputs: Inputs,
    settings: SearchSettings,
) -> ScoreTable:
    """Evaluate every prompt under its predicted weights."""
    weights = [dict(zip(names, own, strict=True)) for own in said]
    prompts = [record.prompt for record in records]
    replies = ensemble.generate(prompts, weights, max_new_tokens=settings.max_new_tokens, seed=0)
    panel = Panel(inputs.scorers)
    panel.score({place: (records[place], reply.text) for place, reply in enumerate(replies)})
    return ScoreTable(tuple(inputs.scorers), np.array([panel[place] for place in range(len(records))]))
