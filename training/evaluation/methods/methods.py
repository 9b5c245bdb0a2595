"""The compared methods (method.md section 5); each is one cell per seed.

All use the same trainer, base, prompts, number of trained parameters, and greedy decoding; only best-of-n samples. The
mixes and soups of a seed share one training of the objectives' adapters. Each method with weights has its own search,
of the same kind and with the same number of evaluations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emorl_core.errors import EmorlError
from emorl_core.files.writing import replacing
from training.evaluation.cells import (
    CELL_FILE,
    FORMAT,
    REPLIES_FILE,
    cell_folder,
    prompt_sha256,
    read_cell,
    write_failed,
)
from training.evaluation.methods.answering import (
    BEST_OF,
    FRONTS,
    PER_PROMPT,
    SINGLE,
    Answering,
    Method,
    adapters_of,
    settled,
)
from training.evaluation.methods.answers import Answered, Answers
from training.evaluation.methods.best_of import best_of
from training.evaluation.methods.dynaopt import too_few_rounds
from training.evaluation.methods.experiment import Experiment, as_json
from training.evaluation.methods.per_prompt import best_texts, front_of
from training.evaluation.methods.stages import Stage, trained
from training.evaluation.scores import SCORES_FILE
from training.progress import Progress
from training.recipe.recipe import Recipe
from training.rl.settings import Transform

_SCORES: dict[Transform, str] = {"log": "log scores", "raw": "scores", "standardised": "standardised scores"}


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """Name -> method, in the order of the table."""
    lanes = len(recipe.objectives)
    every = [
        Method("base", "the frozen model", None),
        Method("prompt-only", "the base, told in one instruction what all objectives ask for", None),
        Method("sentences", "the base's last hidden states under one sentence an objective, mixed, searched", None),
        *(Method(f"{SINGLE}{name}", f"the adapter of {name} alone", "adapters") for name in recipe.objectives),
        Method("uniform", f"one adapter, rewarded by the mean of the {_SCORES[recipe.rl.joint_reward]}", "uniform"),
        Method("dynaopt", "one adapter, reward weights moved by a bandit (Min et al. 2024)", "dynaopt"),
        Method("soups", "the adapters' weight updates averaged: one model, fixed", "adapters"),
        Method("soups-raw", "the updates added up, searched weights from 0 to 1 of any sum, as published", "adapters"),
        Method("weights", "the updates averaged in one lane per request, with searched weights", "adapters"),
        Method("probs", "the adapters' token probabilities mixed, with searched weights", "adapters"),
        Method("emorl", "the adapters' last hidden states mixed, with searched weights", "adapters"),
        Method("emorl-anchored", "the base's state, moved by the weighted differences from it", "adapters"),
        Method(f"{PER_PROMPT}best", "of each prompt the best text on a grid of emorl's weights", "adapters"),
        Method(f"{PER_PROMPT}predicted", "emorl, weights predicted from the base's state of the prompt", "adapters"),
        Method(f"{BEST_OF}base", f"the best of {lanes} sampled replies of the base, by the mean reward", None),
        Method(f"{BEST_OF}uniform", f"the best of {lanes} sampled replies of uniform's adapter", "uniform"),
        Method(f"{BEST_OF}emorl", f"the best of {lanes} sampled replies of the mix that emorl found", "adapters"),
    ]
    return {method.name: method for method in every}


def left_out(recipe: Recipe) -> dict[str, str]:
    """Method -> why a run of this recipe would say nothing about it; these methods are skipped."""
    reasons = {"dynaopt": too_few_rounds(recipe.rl, recipe.preset)}
    settings = recipe.evaluation
    if settings.instruction is None:
        reasons["prompt-only"] = "the recipe has no evaluation.instruction"
    if not settings.sentences:
        reasons["sentences"] = "the recipe has no evaluation.sentences"
    return {name: reason for name, reason in reasons.items() if reason is not None}


def method_names(recipe: Recipe) -> tuple[str, ...]:
    return tuple(methods_of(recipe))


def run_cell(
    method: str, seed: int, experiment: Experiment, progress: Progress = lambda stage, done, total: None
) -> Path:
    """Train what is missing, choose weights and answer the held-out prompts; returns the cell's folder.

    A finished cell is kept; a failed one is run again. A method that cannot answer leaves a failed cell with the
    reason. A method that no seed changes is run once: its other cells are copies.
    """
    folder = cell_folder(experiment.out, method, seed)
    before = read_cell(experiment.out, method, seed)
    if before is not None and before.done:
        return folder
    if methods_of(experiment.recipe)[method].seedless and _copied(method, seed, experiment.out):
        return folder
    try:
        cell, replies = _run(
            methods_of(experiment.recipe)[method], seed, experiment, progress, retry=before is not None
        )
    except EmorlError as error:
        write_failed(experiment.out, method, seed, error.message)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # `cell.json` is written last; it marks the cell as finished.
    lines = "".join(json.dumps(reply, ensure_ascii=False) + "\n" for reply in replies)
    for name, text in ((REPLIES_FILE, lines), (CELL_FILE, as_json(cell))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def _copied(method: str, seed: int, out: Path) -> bool:
    """Whether there was a finished cell of another seed to copy, with its measured times."""
    folder = cell_folder(out, method, seed)
    for other in sorted(folder.parent.glob("seed-*")):
        number = int(other.name.removeprefix("seed-"))
        cell = read_cell(out, method, number)
        if cell is not None and cell.done:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (REPLIES_FILE, SCORES_FILE):
                if (other / name).is_file():
                    with replacing(folder / name) as temporary:
                        shutil.copyfile(other / name, temporary)
            with replacing(folder / CELL_FILE) as temporary:
                temporary.write_text(as_json(cell.model_dump(mode="json") | {"seed": seed}), encoding="utf-8")
            return True
    return False


def _run(
    method: Method, seed: int, experiment: Experiment, progress: Progress, *, retry: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of `cell.json` and the lines of `replies.jsonl`."""
    stage = None if method.needs is None else trained(experiment, method.needs, seed, progress, retry=retry)
    uses = adapters_of(method, experiment)
    answers = Answers(experiment)
    adapters = [] if stage is None else stage.adapters(uses)
    if adapters:
        answers.attach(adapters)
    answering = settled(method, seed, experiment, answers, adapters, progress)
    progress("answering", 0, len(experiment.test))
    answered = _answered(method, seed, experiment, answers, answering, progress)
    progress("answering", len(experiment.test), len(experiment.test))
    lanes = tuple(experiment.recipe.objectives)
    front = front_of(experiment, answers, lanes, answering.combine, progress) if method.name in FRONTS else None
    replies = [
        {
            "index": index,
            "prompt_sha256": prompt_sha256(prompt.text),
            "text": reply.text,
            "tokens": len(reply.token_ids),
            "finish_reason": str(reply.finish_reason),
        }
        for index, (prompt, reply) in enumerate(zip(experiment.test, answered.replies, strict=True))
    ]
    first_token = answers.first_token_seconds(experiment.test, answering.vector, answering.combine)
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
            "scored": answered.scored,
            "ms_per_token": 1000 * answered.seconds / answered.tokens,
            "seconds": answered.seconds,
            "first_token_ms": 1000 * first_token,
        },
        "memory": answers.parameter_bytes(),
        "front": front,
    }
    if method.needs not in (None, "adapters"):
        assert stage is not None  # it needs one
        cell["reward_weights"] = stage.about[uses[0]]["reward_weights"]
    return cell, replies


def _answered(
    method: Method, seed: int, experiment: Experiment, answers: Answers, answering: Answering, progress: Progress
) -> Answered:
    names = tuple(experiment.recipe.objectives)
    if method.name.startswith(BEST_OF):
        return best_of(experiment, answers, answering.vector, len(names), seed, progress)
    if method.name == f"{PER_PROMPT}best":
        return best_texts(experiment, answers, names, progress)
    if answering.vectors:
        return answers.answer_each(experiment.test, answering.vectors)
    return answers.answer(experiment.test, answering.vector, answering.combine)


def _consumption(method: Method, recipe: Recipe, stage: Stage | None, uses: Sequence[str]) -> dict[str, Any]:
    """Training cost, summed over the adapters in use. Seconds of a lockstep step are divided among its objectives."""
    spent = [] if stage is None else [stage.about[name]["consumption"] for name in uses]
    return {
        **{key: sum(own[key] for own in spent) for key in ("pairs", "prompts", "samples", "tokens")},
        "validation_samples": sum(own["validation_samples"] for own in spent),
        "seconds": sum(own["own_seconds"] for own in spent),
        "shared_with": [
            other.name
            for other in methods_of(recipe).values()
            if method.needs is not None and other.needs == method.needs and other.name != method.name
        ],
    }
