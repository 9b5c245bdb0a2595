"""The methods that are compared (method.md section 5), each of them one cell per seed.

All use the same trainer, base, prompts, number of trained parameters and greedy decoding. The mixes and soups of one
seed share one training of the objectives' adapters; those with weights search them in the same way, with the same
number of evaluations, each for itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emorl_core.adapters.adapter import Adapter
from emorl_core.errors import EmorlError
from emorl_core.files.writing import replacing
from emorl_core.types import Combine
from emorl_core.weights import BASE, ResolvedWeights, anchored, resolve
from training.evaluation.answers import Answers
from training.evaluation.cells import (
    CELL_FILE,
    FORMAT,
    REPLIES_FILE,
    cell_folder,
    prompt_sha256,
    read_cell,
    write_failed,
)
from training.evaluation.dynaopt import too_few_rounds
from training.evaluation.experiment import Experiment, as_json
from training.evaluation.generators import MixGenerator, SoupGenerator
from training.evaluation.stages import Stage, StageName, trained
from training.evaluation.weight_choice import choose
from training.progress import Progress
from training.recipe.recipe import Recipe
from training.rl.settings import Transform
from training.search.spaces import Point

SINGLE = "single:"
SOUPS = ("soups", "soups-raw")
_SCORES: dict[Transform, str] = {"log": "log scores", "raw": "scores", "standardised": "standardised scores"}


@dataclass(frozen=True, slots=True)
class Method:
    """`needs`: the training it shares with every other method that needs the same; None: no training."""

    name: str
    description: str
    needs: StageName | None


@dataclass(frozen=True, slots=True)
class _Answering:
    """What a method answers with. `echo`: weights as the cell shows them; None: those that were mixed."""

    vector: ResolvedWeights
    combine: Combine = "hidden"
    anchored: bool = False
    echo: Mapping[str, float] | None = None
    search: Mapping[str, Any] | None = None


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """Name -> method, in the order of the table."""
    every = [
        Method("base", "the frozen model", None),
        *(Method(f"{SINGLE}{name}", f"the adapter of {name} alone", "adapters") for name in recipe.objectives),
        Method("uniform", f"one adapter, rewarded by the mean of the {_SCORES[recipe.rl.joint_reward]}", "uniform"),
        Method("dynaopt", "one adapter, reward weights moved by a bandit (Min et al. 2024)", "dynaopt"),
        Method("soups", "the adapters' weight updates added up, with searched weights", "adapters"),
        Method("soups-raw", "the same, with weights from 0 to 1 of any sum, as published", "adapters"),
        Method("probs", "the adapters' token probabilities mixed, with searched weights", "adapters"),
        Method("emorl", "the adapters' last hidden states mixed, with searched weights", "adapters"),
        Method("emorl-anchored", "the base's state, moved by the weighted differences from it", "adapters"),
    ]
    return {method.name: method for method in every}


def left_out(recipe: Recipe) -> dict[str, str]:
    """Method -> why a run of this recipe would say nothing about it; such methods are not run."""
    reason = too_few_rounds(recipe.rl, recipe.preset)
    return {} if reason is None else {"dynaopt": reason}


def method_names(recipe: Recipe) -> tuple[str, ...]:
    return tuple(methods_of(recipe))


def run_cell(
    method: str, seed: int, experiment: Experiment, progress: Progress = lambda stage, done, total: None
) -> Path:
    """Train what is missing, choose weights, answer the held-out prompts; returns the cell's folder.

    A cell that is done stays as it is; one that failed is run again. A method that cannot answer leaves a failed cell
    with the reason.
    """
    folder = cell_folder(experiment.out, method, seed)
    before = read_cell(experiment.out, method, seed)
    if before is not None and before.done:
        return folder
    try:
        cell, replies = _run(
            methods_of(experiment.recipe)[method], seed, experiment, progress, retry=before is not None
        )
    except EmorlError as error:
        write_failed(experiment.out, method, seed, error.message)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # `cell.json` last: with it the cell is there.
    lines = "".join(json.dumps(reply, ensure_ascii=False) + "\n" for reply in replies)
    for name, text in ((REPLIES_FILE, lines), (CELL_FILE, as_json(cell))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def _run(
    method: Method, seed: int, experiment: Experiment, progress: Progress, *, retry: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of `cell.json` and the lines of `replies.jsonl`."""
    stage = None if method.needs is None else trained(experiment, method.needs, seed, progress, retry=retry)
    uses = _adapters_of(method, experiment)
    answers = Answers(experiment)
    adapters = [] if stage is None else stage.adapters(uses)
    if adapters:
        answers.attach(adapters)
    log = experiment.shared(seed) / f"search-{method.name}.jsonl"
    answering = _answering(method, experiment, answers, adapters, log, progress)
    progress("answering", 0, len(experiment.test))
    answered = answers.answer(experiment.test, answering.vector, answering.combine)
    progress("answering", len(experiment.test), len(experiment.test))
    replies = [
        {
            "index": item.prompt_index,
            "prompt_sha256": prompt_sha256(experiment.test[item.prompt_index].text),
            "text": item.text,
            "tokens": len(item.token_ids),
            "finish_reason": str(item.finish_reason),
        }
        for item in answered.items
    ]
    cell: dict[str, Any] = {
        "format": FORMAT,
        "method": method.name,
        "seed": seed,
        "status": "done",
        "reason": None,
        "weights": answering.echo if answering.echo is not None else answering.vector.as_dict(),
        "combine": answering.combine,
        "anchored": answering.anchored,
        "consumption": _consumption(method, experiment.recipe, stage, uses),
        "search": answering.search,
        "curve": {} if stage is None else {k: v for name in uses for k, v in stage.about[name]["curve"].items()},
        "inference": {
            "lane_row_steps": answered.lane_row_steps,
            "tokens": answered.tokens,
            "ms_per_token": 1000 * answered.seconds / answered.tokens,
            "seconds": answered.seconds,
        },
        "memory": answers.parameter_bytes(),
    }
    if method.needs not in (None, "adapters"):
        assert stage is not None  # it needs one
        cell["reward_weights"] = stage.about[uses[0]]["reward_weights"]
    return cell, replies


def _adapters_of(method: Method, experiment: Experiment) -> tuple[str, ...]:
    """The adapters of its stage that a method uses."""
    if method.needs is None:
        return ()
    if method.needs != "adapters":
        return (method.needs,)
    if method.name.startswith(SINGLE):
        return (method.name.removeprefix(SINGLE),)
    return tuple(experiment.recipe.objectives)


def _answering(
    method: Method, experiment: Experiment, answers: Answers, adapters: Sequence[Adapter], log: Path, progress: Progress
) -> _Answering:
    """The weights of a method, searched where it has any to search."""
    lanes = answers.lanes
    if not adapters:
        return _Answering(resolve(lanes, {BASE: 1.0}))
    if (len(adapters) == 1 and method.needs != "adapters") or method.name.startswith(SINGLE):
        return _Answering(resolve(lanes, {adapters[0].name: 1.0}))
    names = tuple(adapter.name for adapter in adapters)
    if method.name in SOUPS:
        soups = SoupGenerator(answers, experiment.search, adapters)
        choice = choose(experiment, soups, log, cube=method.name == "soups-raw", progress=progress)
        answers.attach([soups.soup("soup", choice.point)])
        weights = dict(zip(names, choice.point, strict=True))
        return _Answering(resolve(answers.lanes, {"soup": 1.0}), echo=weights, search=choice.as_cost())
    combine: Combine = "probs" if method.name == "probs" else "hidden"
    on_base = method.name == "emorl-anchored"

    def mix(point: Point) -> ResolvedWeights:
        return (anchored if on_base else resolve)(lanes, dict(zip(names, point, strict=True)))

    generator = MixGenerator(answers, experiment.search, mix, combine)
    choice = choose(experiment, generator, log, cube=on_base, progress=progress)
    return _Answering(mix(choice.point), combine, on_base, search=choice.as_cost())


def _consumption(method: Method, recipe: Recipe, stage: Stage | None, uses: Sequence[str]) -> dict[str, Any]:
    """Of training, the sum over the adapters in use. Seconds of a lockstep step are divided among its objectives."""
    spent = [] if stage is None else [stage.about[name]["consumption"] for name in uses]
    return {
        **{key: sum(own[key] for own in spent) for key in ("prompts", "samples", "tokens")},
        "validation_samples": sum(own["validation_samples"] for own in spent),
        "seconds": sum(own["own_seconds"] for own in spent),
        "shared_with": [
            other.name
            for other in methods_of(recipe).values()
            if method.needs is not None and other.needs == method.needs and other.name != method.name
        ],
    }
