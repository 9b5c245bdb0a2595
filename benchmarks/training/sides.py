"""Our trainer as a side of the training benchmarks, and what it shares with its peers."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emorl_core.models.registry import load_model
from emorl_core.scorers import checked
from emorl_core.text.spelling import Spelling
from training.data.prompts import Prompt
from training.pipeline.prepare import Encoded
from training.pipeline.workshop import task_of
from training.recipe.recipe import parse_recipe
from training.rl.processes import Processes
from training.rl.trainer import Trainer

NAMES = ("reflection", "empathy", "fluency")
RANK, ALPHA, DROPOUT, KL, RATE, CLIP = 8, 32, 0.05, 0.05, 1e-4, 2.0


class Ids:
    """A tokenizer for random ids, which the scorer reads as words."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def spell(self, token_id: int, *, first: bool) -> Spelling:
        return Spelling.of_bytes(f"{'' if first else ' '}{token_id}".encode())


def score(prompts: list[str], completions: list[str]) -> list[float]:  # noqa: ARG001
    """The share of even ids: cheap, and no objective's reward is constant."""
    return [sum(int(word) % 2 == 0 for word in text.split()) / max(len(text.split()), 1) for text in completions]


class Ours:
    """The trainer itself, one step at a time."""

    def __init__(
        self,
        folder: Path,
        args: argparse.Namespace,
        prompts: Tensor,
        names: Sequence[str] = NAMES,
        invocation: tuple[int, ...] | None = None,
    ) -> None:
        """folder: contains `base`. invocation: the end of every prompt, for adapters that act from there on."""
        recipe = parse_recipe(
            {
                "name": "benchmark",
                "base": {"path": "base"},
                "data": {"sources": [{"kind": "jsonl", "path": "none"}]},
                "objectives": {name: {"scorer": "lexical_fluency"} for name in names},
                "lora": {
                    "rank": RANK,
                    "alpha": ALPHA,
                    "dropout": DROPOUT,
                    "act_on": "all" if invocation is None else "reply",
                },
                "rl": {
                    "prompts_per_step": args.prompts,
                    "samples_per_prompt": args.samples,
                    "max_new_tokens": args.new,
                    "learning_rate": RATE,
                    "validate_every": 10**6,
                    "stop": {"rule": "steps", "max_steps": 10**6},
                },
                "compute": {"device": args.device, "checkpoint_every": 10**6},
            }
        )
        processes = Processes(device=args.device)
        model = load_model(folder / "base", device=processes.device, dtype=torch.float32, training=True)
        rows = [Prompt(i, "", tuple(row), tuple(row)) for i, row in enumerate(prompts.tolist())]
        encoded = Encoded(tuple(rows), tuple(rows), 0, invocation)
        task = task_of(recipe, model, Ids(), encoded, {n: checked(named(n)) for n in names}, {})  # type: ignore[arg-type]
        self._told: list[Any] = []
        self.trainer = Trainer(task, processes, folder / "-".join(["run", *names]), self._told.append)
        self.trainer.folder.mkdir(parents=True, exist_ok=True)
        self._steps = self.trainer.steps()
        for objective in self.trainer.objectives:
            objective.best = self.trainer.stacks.values(objective.lane)

    def step(self) -> dict[str, float]:
        begun = time.perf_counter()
        next(self._steps)
        wait()
        seconds = self._told[-1]["seconds"]
        lengths = {name: own["tokens"] for name, own in self._told[-1]["objectives"].items()}
        return {
            "total": time.perf_counter() - begun,
            "rollout": seconds["rollout"],
            "gradient": seconds["learning"],
            "tokens": statistics.fmean(lengths.values()),
        }


def named(name: str) -> Callable[..., list[float]]:
    def scorer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:  # noqa: ARG001
        return score(prompts, completions)

    scorer.__name__ = name
    return scorer


def device_of(name: str) -> str:
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
