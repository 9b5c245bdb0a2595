"""One adapter during a run: its scorers, its optimiser, and its state in checkpoints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from emorl_core.adapters.adapter import Adapter
from emorl_core.scorers import Checked
from training.rl.rewards import RewardMix, RunningStatistics, Scores, to_rewards
from training.rl.settings import Transform
from training.rl.stacks import ObjectiveOptimizer, Stacks
from training.rl.stopping import StopState, record

Status = Literal["active", "finished", "failed"]


@dataclass(slots=True)
class Consumption:
    """Training cost of an objective, compared between methods (method.md section 6). The paper's "training data points"
    are `prompts`."""

    pairs: int = 0  # given replies used for fitting, counting repeats
    prompts: int = 0  # training prompts, counting repeats
    samples: int = 0  # replies sampled for training
    tokens: int = 0  # tokens of those replies
    validation_samples: int = 0  # greedy replies
    validation_tokens: int = 0
    seconds: float = 0.0  # seconds of the steps and validations it took part in, shared with the other objectives
    own_seconds: float = 0.0  # the same, divided by the number of objectives that took part

    def spend(self, seconds: float, sharing: int) -> None:
        self.seconds += seconds
        self.own_seconds += seconds / sharing

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Objective:
    """`lane` is its index among the model's lanes, from 1; `fresh` the adapter it started with.

    An objective has one scorer, with its name; an adapter trained on several at once has them all in `scorers`, and
    `mix` weights them.
    """

    name: str
    lane: int
    scorers: Mapping[str, Checked]
    mix: RewardMix
    optimizer: ObjectiveOptimizer
    fresh: Adapter
    status: Status = "active"
    reason: str = ""  # why it is no longer active
    steps: int = 0  # optimiser steps taken
    best_mean: float | None = None  # validation score of the best weights
    best_step: int = 0
    best: list[Tensor] = field(default_factory=list)
    statistics: dict[str, RunningStatistics] = field(default_factory=dict)  # by scorer
    stop: StopState = field(default_factory=StopState)
    consumption: Consumption = field(default_factory=Consumption)
    _first_mix: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.statistics = {name: RunningStatistics() for name in self.scorers}
        self._first_mix = self.mix.state()

    def rewards(self, scores: Scores, kind: Transform) -> list[list[float]]:
        """The weighted sum of the scorers' rewards in one step, [prompts][replies of a prompt]."""
        self.mix.begin_step()
        weights = self.mix.weights
        columns = [
            [weights[name] * reward for reward in to_rewards(flat(scores[name]), kind, self.statistics[name])]
            for name in self.scorers
        ]
        added = iter([math.fsum(own) for own in zip(*columns, strict=True)])
        return [[next(added) for _ in own] for own in scores[next(iter(self.scorers))]]

    def validated(self, scores: Scores, step: int, stacks: Stacks) -> dict[str, float]:
        """Record a validation and keep the weights if they are the best so far. Returns the mean of each scorer.

        The criterion is the plain mean over the scorers, whatever the weights of the rewards.
        """
        columns = {name: flat(own) for name, own in scores.items()}
        every = zip(*scores.values(), strict=True)  # a prompt's replies, scorer by scorer
        per_prompt = [statistics.fmean(flat(replies)) for replies in every]
        record(self.stop, per_prompt)
        mean = statistics.fmean(per_prompt)
        if self.best_mean is None or mean > self.best_mean:
            self.best_mean, self.best_step, self.best = mean, step, stacks.values(self.lane)
        means = {name: statistics.fmean(column) for name, column in columns.items()}
        self.mix.validated(scores, step)
        return means

    def begin_at(self, values: list[Tensor]) -> None:
        """Continue from the current weights as if they were the first: earlier validations no longer count for the best
        weights or the scorers' weights. The next validation is of these weights."""
        self.best_mean, self.best_step, self.best = 0.0, 0, values
        self.mix.restore(self._first_mix)

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
            "statistics": {name: asdict(own) for name, own in self.statistics.items()},
            "mix": self.mix.state(),
            "stop": asdict(self.stop),
            "consumption": self.consumption.as_dict(),
        }

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor], stacks: Stacks) -> None:
        """Restore what `state` and `tensors` returned."""
        own = {
            key.removeprefix(f"{self.name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{self.name}/")
        }
        stacks.set_values(self.lane, _numbered(own, "value."))
        self.best = [value.to(stacks.device) for value in _numbered(own, "best.")]
        self.status, self.reason, self.steps = state["status"], state["reason"], state["steps"]
        self.best_mean, self.best_step = state["best_mean"], state["best_step"]
        self.statistics = {name: RunningStatistics(**own) for name, own in state["statistics"].items()}
        self.mix.restore(state["mix"])
        self.stop = StopState.from_dict(state["stop"])
        self.consumption = Consumption(**state["consumption"])
        moments = {key.removeprefix("moment."): value for key, value in own.items() if key.startswith("moment.")}
        self.optimizer.restore(self.steps, moments)


def flat(scores: Sequence[Sequence[float]]) -> list[float]:
    """[prompts][replies] -> [prompts * replies]."""
    return [score for own in scores for score in own]


def _numbered(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(key.startswith(prefix) for key in tensors)
    return [tensors[f"{prefix}{i}"] for i in range(count)]
