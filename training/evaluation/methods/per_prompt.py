"""A grid of weights evaluated on every prompt: the front, the best text of each prompt, and predicted weights.

`per-prompt:best` chooses by the scores of the held-out replies, so it is an upper bound for all rules that choose among
these points. `per-prompt:predicted` shows how much of that can be reached without those scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emorl_core.engine.sweep import SweepItem
from emorl_core.scorers.asking import Panel
from emorl_core.types import Combine
from emorl_core.weights import ResolvedWeights, resolve
from training.data.prompts import Prompt
from training.evaluation.methods.answers import Answered, Answers
from training.evaluation.methods.experiment import Experiment
from training.evaluation.methods.front import STEPS as FRONT_STEPS
from training.evaluation.methods.front import Front, as_values
from training.progress import Progress
from training.search.predictor import STEPS, fit, targets
from training.search.score_table import Array
from training.search.strategies.spaces import Point, grid_points


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """`items` [P][K], `scores` [P, K, objectives]; `lane_row_steps` and `seconds`: total cost, including that of
    scoring the `scored` distinct texts."""

    points: Sequence[Point]
    items: Sequence[Sequence[SweepItem]]
    scores: Array
    lane_row_steps: int
    seconds: float
    scored: int


def swept(
    experiment: Experiment,
    answers: Answers,
    prompts: Sequence[Prompt],
    names: Sequence[str],
    steps: int,
    progress: Progress,
    combine: Combine = "hidden",
) -> Swept:
    """Evaluate every point of the grid over the lanes `names` on every prompt. Raises `ScorerError`."""
    points = grid_points(len(names), steps)
    vectors = [resolve(answers.lanes, dict(zip(names, point, strict=True))) for point in points]
    done, total = 0, len(prompts) * len(points)

    def told() -> None:
        nonlocal done
        done += 1
        progress("sweeping prompts", done, total)

    started = time.perf_counter()
    result = answers.sweep(prompts, vectors, combine, done=told)
    items = [result.of_prompt(place) for place in range(len(prompts))]
    panel = Panel(experiment.scorers)
    texts = {(place, item.text): (prompts[place], item.text) for place, own in enumerate(items) for item in own}
    panel.score(texts)
    scores = np.array([[panel[place, item.text] for item in own] for place, own in enumerate(items)])
    return Swept(points, items, scores, result.lane_row_steps, time.perf_counter() - started, len(texts))


def front_of(
    experiment: Experiment, answers: Answers, names: Sequence[str], combine: Combine, progress: Progress
) -> dict[str, Any] | None:
    """For `cell.json`: the front of the grid in steps of 0.1 on the first held-out prompts; None if the recipe wants
    none."""
    prompts = experiment.test[: experiment.recipe.evaluation.front_prompts]
    if not prompts:
        return None
    found = swept(experiment, answers, prompts, names, FRONT_STEPS, progress, combine)
    front = Front(np.array(found.points), found.scores.mean(axis=0))
    return {"prompts": len(prompts), **as_values(names, front)}


def best_texts(experiment: Experiment, answers: Answers, names: Sequence[str], progress: Progress) -> Answered:
    """For each held-out prompt the text with the highest mean score; the first point in a tie."""
    found = swept(experiment, answers, experiment.test, names, STEPS, progress)
    best = found.scores.mean(axis=2).argmax(axis=1)
    chosen = tuple(own[k] for own, k in zip(found.items, best.tolist(), strict=True))
    return Answered(chosen, found.lane_row_steps, found.seconds, found.scored)


@dataclass(frozen=True, slots=True)
class Predicted:
    """`vectors`: one per held-out prompt; `search`: the cost of training the predictor."""

    vectors: tuple[ResolvedWeights, ...]
    search: dict[str, Any]


def predicted(experiment: Experiment, answers: Answers, names: Sequence[str], progress: Progress) -> Predicted:
    """Fit the predictor on training prompts and predict weights for the held-out ones. Raises `ScorerError`."""
    prompts = experiment.workshop.encoded.train[: experiment.recipe.evaluation.predictor_prompts]
    started = time.perf_counter()
    found = swept(experiment, answers, prompts, names, STEPS, progress)
    means = found.scores.mean(axis=2)
    head = fit(answers.base_states(prompts), targets(means, found.points))
    cost = {
        "evaluations": len(found.points),
        "prompts": means.size,
        "seconds": time.perf_counter() - started,
        "score": float(means.max(axis=1).mean()),
    }
    said = map(head.chosen, answers.base_states(experiment.test))
    vectors = [resolve(answers.lanes, dict(zip(names, own, strict=True))) for own in said]
    return Predicted(tuple(vectors), cost)
