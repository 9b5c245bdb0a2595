"""One objective during a run: its scorer, its optimiser, and everything a checkpoint must hold of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from emorl_core.adapters import Adapter
from training.adapters import Stacks
from training.consumption import Consumption
from training.optimizer import ObjectiveOptimizer
from training.rewards import RunningStatistics
from training.scorers import Checked
from training.stopping import StopState, record

Status = Literal["active", "finished", "failed"]


@dataclass(slots=True)
class Objective:
    """`lane` is its place among the model's lanes, from 1 on; `fresh` the adapter it began with."""

    name: str
    lane: int
    scorer: Checked
    optimizer: ObjectiveOptimizer
    fresh: Adapter
    status: Status = "active"
    reason: str = ""  # why it is no longer active, for people
    steps: int = 0  # optimiser steps taken
    best_mean: float | None = None  # validation score of the best weights
    best_step: int = 0
    best: list[Tensor] = field(default_factory=list)
    statistics: RunningStatistics = field(default_factory=RunningStatistics)
    stop: StopState = field(default_factory=StopState)
    consumption: Consumption = field(default_factory=Consumption)

    def validated(self, scores: Sequence[float], step: int, stacks: Stacks) -> float:
        """Take in one validation, keep the weights if they are the best so far, and return the mean."""
        record(self.stop, scores)
        mean = statistics.fmean(scores)
        if self.best_mean is None or mean > self.best_mean:
            self.best_mean, self.best_step, self.best = mean, step, stacks.values(self.lane)
        return mean

    def end(self, status: Status, reason: str) -> None:
        self.status, self.reason = status, reason

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def tensors(self, stacks: Stacks) -> dict[str, Tensor]:
        named = {f"value.{i}": value for i, value in enumerate(stacks.values(self.lane))}
        named |= {f"best.{i}": value for i, value in enumerate(self.best)}
        named |= {f"moment.{key}": value for key, value in self.optimizer.moments().items()}
        return {f"{self.name}/{key}": value for key, value in named.items()}

    def state(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": self.reason,
            "steps": self.steps,
            "best_mean": self.best_mean,
            "best_step": self.best_step,
            "statistics": asdict(self.statistics),
            "stop": asdict(self.stop),
            "consumption": self.consumption.as_dict(),
        }

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor], stacks: Stacks) -> None:
        """Take back what `state` and `tensors` gave."""
        own = {
            key.removeprefix(f"{self.name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{self.name}/")
        }
        stacks.set_values(self.lane, _numbered(own, "value."))
        self.best = [value.to(stacks.device) for value in _numbered(own, "best.")]
        self.status, self.reason, self.steps = state["status"], state["reason"], state["steps"]
        self.best_mean, self.best_step = state["best_mean"], state["best_step"]
        self.statistics = RunningStatistics(**state["statistics"])
        self.stop = StopState.from_dict(state["stop"])
        self.consumption = Consumption(**state["consumption"])
        moments = {key.removeprefix("moment."): value for key, value in own.items() if key.startswith("moment.")}
        self.optimizer.restore(self.steps, moments)


def _numbered(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(key.startswith(prefix) for key in tensors)
    return [tensors[f"{prefix}{i}"] for i in range(count)]
