"""Replies of a base with adapters or instructions as lanes, under any number of weight vectors."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from emorl_core.adapters.adapter import Adapter
from emorl_core.engine.driver import Driver
from emorl_core.engine.engine import Engine
from emorl_core.engine.sweep import SweepItem, SweepPlan, SweepResult
from emorl_core.lanes.lane import Lane
from emorl_core.models.family import Group
from emorl_core.models.registry import load_model
from emorl_core.types import MAX_SEED, Combine, Completion, LanePrompts, Request, Sampling
from emorl_core.weights import BASE, ResolvedWeights
from training.data.prompts import Encode, Prompt, fitted
from training.evaluation.methods.experiment import Experiment
from training.search.score_table import Array

_WARM_UP = 2  # warm-up prompts, not timed
_TIMED = 5  # prompts to time the first token of


@dataclass(frozen=True, slots=True)
class Answered:
    """A method's replies, in the order of the prompts, and their cost, including replies that were not chosen."""

    replies: tuple[SweepItem | Completion, ...]
    lane_row_steps: int
    seconds: float
    scored: int = 0  # texts that the scorers read to choose the replies

    @property
    def tokens(self) -> int:
        """Tokens of the returned replies."""
        return sum(len(reply.token_ids) for reply in self.replies)


class Answers:
    """Generates with one base; `attach` replaces its adapters."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._model = load_model(
            experiment.workshop.base, device=experiment.workshop.processes.device, dtype=torch.float32
        )
        self._numbers = itertools.count(1)
        self._told: dict[str, Encode] = {}
        self._driver = self._fresh()

    @property
    def lanes(self) -> tuple[str, ...]:
        return (BASE, *self._model.adapters, *self._told)

    def parameter_bytes(self) -> dict[str, int]:
        return self._model.parameter_bytes()

    def attach(self, adapters: Sequence[Adapter]) -> None:
        self._model.attach(adapters)
        self._told = {}
        self._driver = self._fresh()

    def tell(self, sentences: Mapping[str, Encode]) -> None:
        """Lanes without adapters: the bare base with a different prompt in each lane."""
        self.attach([])
        self._told = dict(sentences)
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
        """Prefixes that vectors share are computed once. only: for each prompt the indices of its vectors; done: called
        after every reply."""
        return self._driver.sweep(self._plan(prompts, vectors, combine, only), lambda item: done())

    def answer_each(self, prompts: Sequence[Prompt], vectors: Sequence[ResolvedWeights]) -> Answered:
        """Answer prompt i under vector i, with time and cost as in `answer`."""
        driver, only = self._fresh(), [[place] for place in range(len(prompts))]
        started = time.perf_counter()
        result = driver.sweep(self._plan(prompts, vectors, "hidden", only), None)
        return Answered(result.items, result.lane_row_steps, time.perf_counter() - started)

    @torch.no_grad()
    def base_states(self, prompts: Sequence[Prompt]) -> Array:
        """The bare base's last hidden state of each prompt, [P, D], from which the first token is chosen."""
        bare = (0.0,) * len(self._model.adapters)
        # The token fed after it does not change it.
        reply = ((self._model.facts.eos_token_ids[0],),)
        states = [self._model.reply_hidden([Group(Lane(bare, each.source), reply)])[0][0, 0] for each in prompts]
        return torch.stack(states).double().cpu().numpy()

    def answer(self, prompts: Sequence[Prompt], vector: ResolvedWeights, combine: Combine = "hidden") -> Answered:
        """Replies under one vector, with time and cost; nothing from earlier calls is cached."""
        self._fresh().sweep(self._plan(prompts[:_WARM_UP], [vector], combine), None)
        driver = self._fresh()
        started = time.perf_counter()
        result = driver.sweep(self._plan(prompts, [vector], combine), None)
        return Answered(result.items, result.lane_row_steps, time.perf_counter() - started)

    def first_token_seconds(self, prompts: Sequence[Prompt], vector: ResolvedWeights, combine: Combine) -> float:
        """Time to the first token of a single prompt without caches, as the median over a few prompts."""
        taken = []
        for number, prompt in enumerate(prompts[: _WARM_UP + _TIMED]):
            request = Request(
                f"first{number}",
                prompt.source,
                vector.vector,
                Sampling(1, seed=0),
                combine,
                stream=False,
                logprobs=False,
                lane_prompts=self._lane_prompts(prompt),
            )
            (done,) = self._fresh().finish([request])
            taken.append(done.first_token_s)
        return statistics.median(taken[_WARM_UP:] or taken)

    def sampled(
        self, prompts: Sequence[Prompt], vector: ResolvedWeights, count: int, seed: int
    ) -> tuple[list[list[Completion]], float]:
        """`count` replies per prompt at temperature 1, [prompts][count], and the seconds for all of them. Each reply's
        random numbers depend on `seed` and its position only."""
        driver, number = self._fresh(), next(self._numbers)
        requests = [
            Request(
                f"sampled{number}-{place}-{k}",
                prompt.source,
                vector.vector,
                Sampling(self._experiment.recipe.rl.max_new_tokens, temperature=1.0, seed=_noise(seed, place, k)),
                stream=False,
                logprobs=False,
                lane_prompts=self._lane_prompts(prompt),
            )
            for place, prompt in enumerate(prompts)
            for k in range(count)
        ]
        started = time.perf_counter()
        done = driver.finish(requests)
        seconds = time.perf_counter() - started
        return [done[first : first + count] for first in range(0, len(done), count)], seconds

    def _lane_prompts(self, prompt: Prompt) -> LanePrompts:
        if not self._told:
            return ()
        most = self._experiment.recipe.max_source_tokens
        own = [fitted(encode, prompt.text, most, field="max_source_tokens").ids for encode in self._told.values()]
        return ((), *own)

    def _plan(
        self,
        prompts: Sequence[Prompt],
        vectors: Sequence[ResolvedWeights],
        combine: Combine,
        only: Sequence[Collection[int]] | None = None,
    ) -> SweepPlan:
        sampling = Sampling(self._experiment.recipe.rl.max_new_tokens, seed=0)
        # Request ids must not be reused, since an engine may treat them as cancelled.
        prefix = f"answers{next(self._numbers)}"
        sources = [prompt.source for prompt in prompts]
        own = [self._lane_prompts(prompt) for prompt in prompts]
        return SweepPlan(sources, vectors, sampling, combine=combine, only=only, prefix=prefix, lane_prompts=own)

    def _fresh(self) -> Driver:
        slots = self._experiment.recipe.compute.rollout_slots
        return Driver(Engine(self._model, self._experiment.workshop.tokenizer.decode, self.lanes, slots=slots))


def _noise(seed: int, place: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {place} {number}".encode()).digest()[:8]) % MAX_SEED
