"""What a user would run instead, each at the best settings it has. Hugging Face transformers and PEFT.

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
from transformers import T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from benchmarks.speed.workload import EOS, Setup, Times, Work, check_length
from emorl_core.bundles.bundle import Bundle
from emorl_core.machine.precision import pick_dtype

logging.set_verbosity_error()  # its hints about missing settings are not for who measures
logging.disable_progress_bar()

_START = 0  # T5's decoder start token


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
        self._models = {self._attention: self._model(self._attention)}

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
        if attention not in self._models:
            self._models[attention] = load_base(self._setup, attention)
        return self._models[attention]

    def _generate(self, attention: str, cache: str, work: Work) -> Times:
        model = self._model(attention)
        model.generation_config.eos_token_id = None  # nothing to suppress and nothing to look for at each token
        ids = torch.tensor(work.prompts(), device=model.device)
        mask = torch.ones_like(ids)
        clock = _Clock(ids.device)
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
            )[:, 1:].tolist()
        check_length(len(made[0]), work.new, "one-model")
        return Times(clock.stamps[0], clock.stamps[-1], work.new, tuple(clock.stamps), _ids(made))


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
        clock = _Clock(device)
        clock.start()
        for before in (0, *(int((i + 0.5) / self.SAMPLED * work.new) for i in range(self.SAMPLED))):
            self._next(ids, torch.full((work.requests, 1 + before), _START, device=device), weights)
            clock.stamp()
        first = clock.stamps[0]
        mean = (clock.stamps[-1] - first) / self.SAMPLED
        return Times(first, first + mean * (work.new - 1), work.new)

    @torch.inference_mode()
    def run(self, work: Work) -> Times:
        first = self._models[0]
        ids = torch.tensor(work.prompts(), device=first.device)
        weights = torch.tensor(work.weights(len(self._models)), device=first.device)  # [B, N]
        tokens = torch.full((work.requests, 1), _START, device=first.device)
        clock = _Clock(first.device)
        clock.start()
        for _ in range(work.new):
            tokens = torch.cat([tokens, self._next(ids, tokens, weights).unsqueeze(1)], dim=1)
            clock.stamp()
        made = tokens[:, 1:].tolist()
        return Times(clock.stamps[0], clock.stamps[-1], work.new, tuple(clock.stamps), _ids(made))

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


class PeftMixed:
    """`peft-mixed`: one Hugging Face model, one row per lane with PEFT's `adapter_names`, a key-value cache, hidden
    states mixed outside, one head product. PEFT's hooks are set once for a generation, not once for a token."""

    def __init__(self, setup: Setup) -> None:
        from peft import PeftModel

        folders = adapter_folders(setup)
        self._names = [folder.name for folder in folders]
        with quiet_peft():
            self._model = PeftModel.from_pretrained(load_base(setup, "sdpa"), folders[0], adapter_name=self._names[0])
            for folder in folders[1:]:
                self._model.load_adapter(folder, adapter_name=folder.name)
        self._model.to(pick_dtype(setup.dtype, torch.device(setup.device)))  # PEFT keeps adapters in float32
        self._model.eval()

    @torch.inference_mode()
    def run(self, work: Work) -> Times:
        inner = self._model.get_base_model()
        device, lanes = inner.device, len(self._names)
        ids = torch.tensor(work.prompts(), device=device).repeat_interleave(lanes, dim=0)  # [B * N, S]
        weights = torch.tensor(work.weights(lanes), device=device)
        made: list[list[int]] = []
        clock = _Clock(device)
        with self._model.base_model._enable_peft_forward_hooks(adapter_names=self._names * work.requests):
            clock.start()
            encoded = inner.encoder(input_ids=ids).last_hidden_state
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            tokens = torch.full((len(ids), 1), _START, device=device)
            for _ in range(work.new):
                out = inner.decoder(
                    input_ids=tokens, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
                )
                chosen = choose(inner, out.last_hidden_state.view(work.requests, lanes, -1), weights)
                tokens = chosen.repeat_interleave(lanes).unsqueeze(1)
                made.append(chosen.tolist())
                clock.stamp()
        by_request = [list(each) for each in zip(*made, strict=True)]
        return Times(clock.stamps[0], clock.stamps[-1], work.new, tuple(clock.stamps), _ids(by_request))

    def facts(self) -> dict[str, object]:
        total = parameter_bytes(self._model)
        adapters = sum(p.numel() * p.element_size() for name, p in self._model.named_parameters() if "lora_" in name)
        return {
            "settings": "sdpa attention, dynamic cache, hooks set once",
            "parameter_bytes": {"base": total - adapters, "adapters": adapters},
        }


class _Clock(StoppingCriteria):
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
    mixed = torch.einsum("bnd,bn->bd", lanes.float(), weights) * model.config.d_model**-0.5
    logits = model.lm_head(mixed.to(model.dtype)).float()
    logits[:, EOS] = float("-inf")
    return logits.argmax(dim=-1)


def load_base(setup: Setup, attention: str) -> Any:
    """The bundle's base as a Hugging Face model."""
    return (
        T5ForConditionalGeneration.from_pretrained(
            Bundle.open(setup.folder).base_folder(),
            dtype=pick_dtype(setup.dtype, torch.device(setup.device)),
            attn_implementation=attention,
        )
        .to(setup.device)
        .eval()
    )


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


def _ids(rows: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows)
