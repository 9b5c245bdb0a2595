"""Alternatives that a user might run, each with its best settings: Hugging Face transformers on one model or several.

All of them decode greedily, never choose the end of sequence, and generate exactly the requested number of tokens.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from benchmarks.speed.workload import EOS, Setup, Times, Work, check_length
from emorl_core.bundles.bundle import Bundle
from emorl_core.machine.precision import pick_dtype

logging.set_verbosity_error()  # its hints about missing settings are irrelevant here
logging.disable_progress_bar()

START = 0  # T5's decoder start token


class OneModel:
    """`one-model`: Hugging Face `generate` on one model, for a user who gives up steering.

    A merged model has the shapes of its base, so the base is loaded. Attention implementations and cache types are
    tried at load, and the fastest combination is used.
    """

    TRIED = tuple(product(("sdpa", "eager"), ("dynamic", "static")))
    _KIND = ""
    _TRIAL = Work(requests=1, source=64, new=24, seed=-1)

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._models: dict[str, Any] = {}
        trials = {pair: self._trial(*pair) for pair in self.TRIED}
        self._attention, self._cache = min(trials, key=lambda pair: trials[pair])
        self._trials = {f"{a}, {c} cache": seconds * 1e3 for (a, c), seconds in trials.items()}

    def run(self, work: Work) -> Times:
        return self._generate(self._attention, self._cache, work)

    def facts(self) -> dict[str, object]:
        model = self._model(self._attention)
        return {
            "settings": f"{self._KIND}{self._attention} attention, {self._cache} cache",
            "ms_per_token_tried": self._trials,
            "parameter_bytes": {"base": parameter_bytes(model)},
        }

    def _trial(self, attention: str, cache: str) -> float:
        self._generate(attention, cache, self._TRIAL)
        return statistics.median(self._generate(attention, cache, self._TRIAL).per_token for _ in range(3))

    def _model(self, attention: str) -> Any:
        """Load one model at a time: few large ones fit into memory."""
        if attention not in self._models:
            self._models.clear()
            self._models[attention] = load_base(self._setup, attention)
        return self._models[attention]

    def _generate(self, attention: str, cache: str, work: Work) -> Times:
        model = self._model(attention)
        model.generation_config.eos_token_id = None  # no token to suppress or to check for at each step
        ids = torch.tensor(work.prompts(), device=model.device)
        mask = torch.ones_like(ids)
        clock = Clock(ids.device)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clock.start()
            made = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=work.new,
                do_sample=False,
                cache_implementation=cache,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        made = ids_of(made[:, 1 if model.config.is_encoder_decoder else work.source :])
        check_length(len(made[0]), work.new, "one-model")
        return Times(clock.stamps[0], clock.stamps[-1], work.new, tuple(clock.stamps), made)


class OneModelCompiled(OneModel):
    """`one-model compiled`: the same with `torch.compile` and frozen weights, which are packed for the CPU library. It
    needs a C++ compiler, and most of a minute for every new length and number of requests, so only the decode case has
    it."""

    TRIED = (("sdpa", "static"),)  # the cache that transformers supports in compilation
    _KIND = "torch.compile with frozen weights, "

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._models = {}
        self._attention, self._cache = self.TRIED[0]
        self._trials = {}
        from torch._inductor import config as inductor

        inductor.freezing = True
        model = self._model(self._attention)
        model.forward = torch.compile(model.forward, dynamic=False)


class Published:
    """`published`: N full models; for every token each runs its encoder and whole decoder again, without a cache.

    Faster than the published code: models do not run their own heads, and the one head runs only for the last position.
    """

    SAMPLED = 6  # tokens of an answer that `sample` computes

    def __init__(self, setup: Setup) -> None:
        from peft import PeftModel

        self._models = []
        with quiet_peft():
            for folder in adapter_folders(setup):
                merged = PeftModel.from_pretrained(load_base(setup, "sdpa"), folder).merge_and_unload()
                self._models.append(merged.eval())

    @torch.inference_mode()
    def sample(self, work: Work) -> Times:
        """Time the first token and some others spread evenly over the answer, each after its actual number of
        predecessors; `total` applies their mean to all. The cost of a token here grows linearly with its position."""
        device = self._models[0].device
        ids = torch.tensor(work.prompts(), device=device)
        weights = torch.tensor(work.weights(len(self._models)), device=device)
        clock = Clock(device)
        clock.start()
        for before in (0, *(int((i + 0.5) / self.SAMPLED * work.new) for i in range(self.SAMPLED))):
            self._next(ids, torch.full((work.requests, 1 + before), START, device=device), weights)
            clock.stamp()
        first = clock.stamps[0]
        mean = (clock.stamps[-1] - first) / self.SAMPLED
        return Times(first, first + mean * (work.new - 1), work.new)

    @torch.inference_mode()
    def run(self, work: Work) -> Times:
        first = self._models[0]
        ids = torch.tensor(work.prompts(), device=first.device)
        weights = torch.tensor(work.weights(len(self._models)), device=first.device)  # [B, N]
        tokens = torch.full((work.requests, 1), START, device=first.device)
        clock = Clock(first.device)
        clock.start()
        for _ in range(work.new):
            tokens = torch.cat([tokens, self._next(ids, tokens, weights).unsqueeze(1)], dim=1)
            clock.stamp()
        return Times(clock.stamps[0], clock.stamps[-1], work.new, tuple(clock.stamps), ids_of(tokens[:, 1:]))

    def facts(self) -> dict[str, object]:
        total = sum(parameter_bytes(model) for model in self._models)
        return {"settings": "sdpa attention, no cache", "parameter_bytes": {"base": total}}

    def _next(self, ids: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """ids [B, S], tokens so far [B, T], weights [B, N] -> the next token [B]."""
        lanes = []
        for model in self._models:
            encoded = model.encoder(input_ids=ids).last_hidden_state
            decoded = model.decoder(input_ids=tokens, encoder_hidden_states=encoded, use_cache=False)
            lanes.append(decoded.last_hidden_state[:, -1])
        return choose(self._models[0], torch.stack(lanes, dim=1), weights)


class Clock(StoppingCriteria):
    """Records the time after every token; a stopping criterion of `generate` that never stops."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stamps: list[float] = []

    def start(self) -> None:
        self._start = self._now()

    def stamp(self) -> None:
        self.stamps.append(self._now() - self._start)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        self.stamp()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def choose(model: Any, lanes: Tensor, weights: Tensor) -> Tensor:
    """Last hidden states [B, N, D] and weights [B, N] -> the likeliest token [B] that does not end the sequence."""
    mixed = torch.einsum("bnd,bn->bd", lanes.float(), weights)
    if model.config.is_encoder_decoder:  # T5 scales the input of its tied head
        mixed = mixed * model.config.d_model**-0.5
    logits = model.lm_head(mixed.to(model.dtype)).float()
    logits[:, EOS] = float("-inf")
    return logits.argmax(dim=-1)


def load_base(setup: Setup, attention: str) -> Any:
    """The bundle's base as a Hugging Face model."""
    folder = Bundle.open(setup.folder).base_folder()
    encodes = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    dtype = pick_dtype(setup.dtype, torch.device(setup.device))
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation=attention).to(setup.device).eval()


def adapter_folders(setup: Setup) -> list[Path]:
    bundle = Bundle.open(setup.folder)
    return [bundle.adapter_folder(name) for name in bundle.spec.objectives]


def parameter_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT's warnings about deprecated parts of transformers 5 that it still uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ids_of(tokens: Tensor) -> tuple[tuple[int, ...], ...]:
    """Token ids [B, T] in the form of `Times.ids`."""
    return tuple(tuple(row) for row in tokens.tolist())
