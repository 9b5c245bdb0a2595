"""`peft-mixed`: one Hugging Face model with one row per lane through PEFT's `adapter_names`, a key-value cache, hidden
states mixed outside the model, one head product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from benchmarks.speed.engines.transformers_models import (
    START,
    Clock,
    adapter_folders,
    choose,
    ids_of,
    load_base,
    parameter_bytes,
    quiet_peft,
)
from benchmarks.speed.workload import Setup, Times, Work
from emorl_core.machine.precision import pick_dtype


class PeftMixed:
    """PEFT's hooks are set once per generation, not once per token."""

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
        made: list[Tensor] = []
        clock = Clock(device)
        with self._model.base_model._enable_peft_forward_hooks(adapter_names=self._names * work.requests):
            clock.start()
            steps = (_EncoderDecoder if inner.config.is_encoder_decoder else _DecoderOnly)(inner, ids)
            tokens = steps.first
            for _ in range(work.new):
                hidden = steps.last_hidden(tokens)
                made.append(choose(inner, hidden.view(work.requests, lanes, -1), weights))
                tokens = made[-1].repeat_interleave(lanes).unsqueeze(1)
                clock.stamp()
        return Times(clock.stamps[0], clock.stamps[-1], work.new, tuple(clock.stamps), ids_of(torch.stack(made, dim=1)))

    def facts(self) -> dict[str, object]:
        total = parameter_bytes(self._model)
        adapters = sum(p.numel() * p.element_size() for name, p in self._model.named_parameters() if "lora_" in name)
        return {
            "settings": "sdpa attention, dynamic cache, hooks set once",
            "parameter_bytes": {"base": total - adapters, "adapters": adapters},
        }


class _EncoderDecoder:
    """`first`: the tokens of the first step, [rows, 1]."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self._decoder = model.decoder
        self._encoded = model.encoder(input_ids=ids).last_hidden_state
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.first = torch.full((len(ids), 1), START, device=ids.device)

    def last_hidden(self, tokens: Tensor) -> Tensor:
        """Of each row, [rows, D]."""
        out = self._decoder(
            input_ids=tokens, encoder_hidden_states=self._encoded, past_key_values=self._cache, use_cache=True
        )
        return out.last_hidden_state[:, -1]


class _DecoderOnly:
    """`first`: the tokens of the first step, which are the prompts, [rows, S]."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self._decoder = model.model
        self._cache = DynamicCache()
        self.first = ids

    def last_hidden(self, tokens: Tensor) -> Tensor:
        """Of each row, [rows, D]."""
        out = self._decoder(input_ids=tokens, past_key_values=self._cache, use_cache=True)
        return out.last_hidden_state[:, -1]
