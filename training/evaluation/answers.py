"""Greedy replies of a base with adapters as lanes, under any number of weight vectors."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from emorl_core.adapters import Adapter
from emorl_core.engine.driver import Driver
from emorl_core.engine.engine import Engine
from emorl_core.engine.sweep import SweepItem, SweepPlan
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

    def texts(
        self,
        prompts: Sequence[Prompt],
        vectors: Sequence[ResolvedWeights],
        combine: Combine = "hidden",
        done: Callable[[], None] = lambda: None,
    ) -> list[list[str]]:
        """[vectors][prompts]; prefixes that vectors share run once. done: called after every text."""
        result = self._driver.sweep(self._plan(prompts, vectors, combine), lambda item: done())
        texts = [[""] * len(prompts) for _ in vectors]
        for item in result.items:
            texts[item.weights_index][item.prompt_index] = item.text
        return texts

    def answer(self, prompts: Sequence[Prompt], vector: ResolvedWeights, combine: Combine = "hidden") -> Answered:
        """One vector's replies, with time and cost; nothing is remembered from earlier calls."""
        self._fresh().sweep(self._plan(prompts[:_WARM_UP], [vector], combine), None)
        driver = self._fresh()
        started = time.perf_counter()
        result = driver.sweep(self._plan(prompts, [vector], combine), None)
        return Answered(result.items, result.lane_row_steps, time.perf_counter() - started)

    def _plan(self, prompts: Sequence[Prompt], vectors: Sequence[ResolvedWeights], combine: Combine) -> SweepPlan:
        sampling = Sampling(self._experiment.recipe.rl.max_new_tokens, seed=0)
        # An engine that has seen a request's name once takes it for one that was withdrawn.
        prefix = f"answers{next(self._numbers)}"
        return SweepPlan([prompt.source for prompt in prompts], vectors, sampling, combine=combine, prefix=prefix)

    def _fresh(self) -> Driver:
        slots = self._experiment.recipe.compute.rollout_slots
        return Driver(Engine(self._model, self._experiment.workshop.tokenizer.decode, self.lanes, slots=slots))
