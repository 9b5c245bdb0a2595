"""What a user would run instead, each at the best settings it has: Hugging Face transformers on one model or several.

All of them decode greedily, never choose the end of sequence, and make exactly the tokens that were asked for.
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

logging.set_verbosity_error()  # its hints about missing settings are not for who measures
logging.disable_progress_bar()

START = 0  # T5's decoder start token


class OneModel:
    """`one-model`: Hugging Face `generate` on one model, what a user runs who gives up steering.

    A merged model has the shapes of its base, and the base is what is loaded. The attention implementation and the kind
    of cache are tried out on loading, and the fastest pair is kept.
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
        """One at a time: of large shapes not many fit into memory."""
        if attention not in self._models:
            self._models.clear()
            self._models[attention] = load_base(self._setup, attention)
        return self._models[attention]

    def _generate(self, attention: str, cache: str, work: Work) -> Times:
        model = self._model(attention)
        model.generation_config.eos_token_id = None  # nothing to suppress and nothing to look for at each token
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
    """`one-model compiled`: the same through `torch.compile` with frozen weights, which packs them for the CPU library.
    It needs a C++ compiler and the better part of a minute for every new length and number of requests, so only the
    decode case has it."""

    TRIED = (("sdpa", "static"),)  # the cache that transformers compiles for
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
    """`published`: N full models; for every token each runs its encoder and its whole decoder again, without a cache.

    Kinder than the published code: no model computes its own head, and the one head product is of the last position.
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
        """The first token, and some spread evenly over the rest of the answer, each after as many tokens as it would
        have before it; `total` counts their mean for all. What a token costs here grows evenly with its position."""
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
    """A stamp after every token; in `generate` it stands where other criteria decide, and never stops anything."""

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
    if model.config.is_encoder_decoder:  # as T5 scales what goes into its tied head
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
    """PEFT warns about parts of transformers 5 that it still asks for; that is theirs to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ids_of(tokens: Tensor) -> tuple[tuple[int, ...], ...]:
    """Token ids [B, T] as `Times` keeps them."""
    return tuple(tuple(row) for row in tokens.tolist())
