"""Greedy replies of a base with adapters as lanes, under any number of weight vectors."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from emorl_core.adapters.adapter import Adapter
from emorl_core.engine.driver import Driver
from emorl_core.engine.engine import Engine
from emorl_core.engine.sweep import SweepItem, SweepPlan, SweepResult
from emorl_core.models.registry import load_model
from emorl_core.types import Combine, Sampling
from emorl_core.weights import BASE, ResolvedWeights
from training.data.prompts import Prompt
from training.evaluation.experiment import Experiment

_WARM_UP = 2  # prompts answered before the clock runs


@dataclass(frozen=True, slots=True)
class Answered:
    """What one weight vector answered, in the order of the prompts, and what it cost."""

    items: tuple[SweepItem, ...]
    lane_row_steps: int
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(item.token_ids) for item in self.items)


class Answers:
    """Holds one base; `attach` gives it other adapters."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._model = load_model(
            experiment.workshop.base, device=experiment.workshop.processes.device, dtype=torch.float32
        )
        self._numbers = itertools.count(1)
        self._driver = self._fresh()

    @property
    def lanes(self) -> tuple[str, ...]:
        return (BASE, *self._model.adapters)

    def parameter_bytes(self) -> dict[str, int]:
        return self._model.parameter_bytes()

    def attach(self, adapters: Sequence[Adapter]) -> None:
        self._model.attach(adapters)
        self._driver = self._fresh()

    def sweep(
        self,
        prompts: Sequence[Prompt],
        vectors: Sequence[ResolvedWeights],
        combine: Combine = "hidden",
        *,
        only: Sequence[Collection[int]] | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> SweepResult:
        """Prefixes that vectors share run once. only: per prompt the indices of the vectors that it is answered under;
        done: called after every reply."""
        return self._driver.sweep(self._plan(prompts, vectors, combine, only), lambda item: done())

    def answer(self, prompts: Sequence[Prompt], vector: ResolvedWeights, combine: Combine = "hidden") -> Answered:
        """One vector's replies, with time and cost; nothing is remembered from earlier calls."""
        self._fresh().sweep(self._plan(prompts[:_WARM_UP], [vector], combine), None)
        driver = self._fresh()
        started = time.perf_counter()
        result = driver.sweep(self._plan(prompts, [vector], combine), None)
        return Answered(result.items, result.lane_row_steps, time.perf_counter() - started)

    def _plan(
        self,
        prompts: Sequence[Prompt],
        vectors: Sequence[ResolvedWeights],
        combine: Combine,
        only: Sequence[Collection[int]] | None = None,
    ) -> SweepPlan:
        sampling = Sampling(self._experiment.recipe.rl.max_new_tokens, seed=0)
        # An engine that has seen a request's name once takes it for one that was withdrawn.
        prefix = f"answers{next(self._numbers)}"
        sources = [prompt.source for prompt in prompts]
        return SweepPlan(sources, vectors, sampling, combine=combine, only=only, prefix=prefix)

    def _fresh(self) -> Driver:
        slots = self._experiment.recipe.compute.rollout_slots
        return Driver(Engine(self._model, self._experiment.workshop.tokenizer.decode, self.lanes, slots=slots))
