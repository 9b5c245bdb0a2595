"""Tiny training tasks: a random T5, scorers that count a word, and prompts of a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from emorl_core.models.registry import adapter_task, load_model
from emorl_core.scorers import Checked, checked
from emorl_core.text.tokenizer import HuggingFaceTokenizer
from tests.builders import tiny_t5
from training.data.prompts import encode_prompts
from training.data.records import Record
from training.data.wording import template_or_chat
from training.pipeline.invocation import invocation_of
from training.pipeline.prepare import Encoded
from training.pipeline.workshop import Joint, task_of
from training.recipe.recipe import Recipe, parse_recipe
from training.rl.processes import Processes
from training.rl.task import Task
from training.rl.tracking import Report
from training.rl.trainer import Trainer

TEXTS = (
    "i feel sad at work",
    "my mother left again",
    "nobody listens to me and i drink at night",
    "want to change my life",
    "angry at my friend",
    "the doctor said smoke never",
    "i can't sleep",
    "worried about money and the family",
)
NAMES = ("reflection", "empathy", "fluency")
WANTED = {"reflection": "e", "empathy": "a", "fluency": "o"}  # frequent letters: every sample has some


def letter_scorer(letter: str, name: str) -> Checked:
    """The share of a reply's characters that are `letter`, times 4, at most 1."""

    def scorer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [min(1.0, 4 * text.count(letter) / max(len(text), 1)) for text in completions]

    scorer.__name__ = name
    return checked(scorer)


def tiny_recipe(names: tuple[str, ...] = NAMES, *, rl: Mapping[str, Any] | None = None, **values: Any) -> Recipe:
    """Four prompts a step, three replies of up to eight tokens, four steps unless told otherwise."""
    settings: dict[str, Any] = {
        "prompts_per_step": 4,
        "samples_per_prompt": 3,
        "max_new_tokens": 8,
        "learning_rate": 1e-2,
        "validate_every": 2,
        "stop": {"rule": "steps", "max_steps": 4},
        **(rl or {}),
    }
    return parse_recipe(
        {
            "name": "tiny",
            "base": {"path": "base"},
            "data": {"sources": [{"kind": "jsonl", "path": "prompts.jsonl"}]},
            "objectives": {name: {"scorer": "lexical_reflection"} for name in names},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.05},
            "rl": settings,
            "compute": {"device": "cpu", "checkpoint_every": 1},
            **values,
        }
    )


def tiny_task(
    folder: Path,
    recipe: Recipe,
    scorers: Mapping[str, Checked] | None = None,
    *,
    gated: bool = False,
    joint: Joint | None = None,
) -> Task:
    """The task of a recipe on the tiny base in `folder`/base, which is made when it is not there."""
    base = folder / "base"
    if not base.exists():
        tiny_t5(base, gated=gated)
    tokenizer = HuggingFaceTokenizer(base)
    device = torch.device("cpu")
    prompts, _ = encode_prompts(
        [Record(text, where=f"prompts.jsonl:{line}") for line, text in enumerate(TEXTS, start=1)],
        template_or_chat(recipe.prompt_template, recipe.chat, tokenizer),
        max_source_tokens=recipe.max_source_tokens,
        gradient_source_tokens=recipe.rl.gradient_source_tokens,
    )
    return task_of(
        recipe,
        load_model(base, device=device, dtype=torch.float32, training=True),
        tokenizer,
        Encoded(prompts, prompts[:4], 0, invocation_of(recipe, tokenizer, adapter_task(base))),
        dict(scorers or {name: letter_scorer(WANTED[name], name) for name in recipe.objectives}),
        {"recipe": "tiny"},
        joint,
    )


def tiny_trainer(
    folder: Path,
    recipe: Recipe | None = None,
    scorers: Mapping[str, Checked] | None = None,
    *,
    gated: bool = False,
    report: Report = lambda record: None,
    run: str = "run",
    make: Callable[..., Trainer] = Trainer,
) -> Trainer:
    processes = Processes(device="cpu")
    return make(tiny_task(folder, recipe or tiny_recipe(), scorers, gated=gated), processes, folder / run, report)


# The same scorers by dotted path, for recipes that other processes read.
def reflection_score(prompts: list[str], completions: list[str]) -> list[float]:
    return letter_scorer(WANTED["reflection"], "reflection")(prompts=prompts, completions=completions)


def empathy_score(prompts: list[str], completions: list[str]) -> list[float]:
    return letter_scorer(WANTED["empathy"], "empathy")(prompts=prompts, completions=completions)


def fluency_score(prompts: list[str], completions: list[str]) -> list[float]:
    return letter_scorer(WANTED["fluency"], "fluency")(prompts=prompts, completions=completions)
