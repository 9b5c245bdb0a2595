"""The decoding step on a CPU through `torch.compile`, which fuses its small operations (figures in docs/log.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import SIZE_STEP, round_size
from emorl_core.lanes.index import LaneIndex
from emorl_core.models.compiling import check_compiler, compile_for_one_model, compiling
from emorl_core.models.t5.model import T5
from emorl_core.models.t5.step import StepFunction, StepRows


class CompiledStep:
    """`T5.step` for one new token a lane row, compiled once for all sizes. Not for training."""

    def __init__(self, model: T5) -> None:
        """Compiles, which takes a minute or two the first time and seconds when the compiler's cache on
        disk knows the model.

        Raises:
            UnsupportedModel: torch cannot compile here (most often: no C++ compiler).
        """
        check_compiler()
        self._model = model
        step = StepFunction(model)
        self._parameters = step.parameters
        for parameter in self._parameters:
            torch._dynamo.mark_static(parameter)
        self._step = compile_for_one_model(step.function, dynamic=True)
        self._head = compile_for_one_model(_head_row, dynamic=False)
        self._lanes: LaneIndex | None = None
        self._compiled = False
        self._warm_up()
        self._compiled = True

    def __call__(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """tokens [M, 1], lanes of M rows -> last hidden states [M, D]; writes the new token's keys and values."""
        model, count = self._model, cache.count
        cache.reserve(1)
        if self._lanes is not lanes:
            # The compiler specialises on a size of 1, so a single row is padded to two.
            self._lanes, self._rows = lanes, StepRows(lanes, cache, max(2, count))
        x = model.embedding.rows(tokens[:, 0])
        lengths = torch.tensor(cache.lengths)
        if count == 1:
            x, lengths = x.repeat(2, 1), lengths.repeat(2)
        bias = model.decoder_positions.causal(lengths.unsqueeze(1), round_size(max(cache.lengths) + 1))[
            :, :, 0
        ].float()  # [M, H, T]
        assert cache.cross is not None
        own, cross = cache.own.layers, cache.cross.layers
        if not self._compiled:  # the compiler is told once which sizes never change
            for tensor in (x, bias, self._rows.used, self._rows.coefficients):
                torch._dynamo.mark_static(tensor, 1)
            for layer in (*own, *cross):
                torch._dynamo.mark_static(layer, [0, 2, 4])
        rows = self._rows
        hidden = self._step(
            x, rows.used, rows.coefficients, rows.places, lengths, bias, rows.source_mask, own, cross, self._parameters
        )
        cache.advance(1)
        return hidden[:count]

    def head_row(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """Only in bfloat16: the CPU library's product is as fast in float32."""
        return self._head(weight, hidden) if weight.dtype == torch.bfloat16 else None

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile with example sizes that show which of them are the same.

        The compiler gives equal sizes one symbol. The layers' caches should share theirs (or it takes minutes); rows,
        tokens, source tokens and the capacities must not: so here they are 3, 16, 48 and 4, 33, 65.
        """
        model = self._model
        cache, config = model.new_cache(), model.config
        for length in (3, 5, 2 * SIZE_STEP + 1):
            cache.insert(Memory(torch.zeros(2, config.num_decoder_layers, config.num_heads, length, config.d_kv)))
        adapters = len(model.adapters)
        # Rows of one adapter each, then rows that sum several: each is compiled for itself (see `LaneIndex.used`), and
        # the first request of a kind should not wait for that.
        summed = [(torch.arange(adapters) < used).float() for used in sorted({min(1, adapters), adapters})]
        with compiling():
            for coefficients in summed:
                lanes = LaneIndex(coefficients.expand(cache.count, -1))
                self(torch.zeros(cache.count, 1, dtype=torch.int64), lanes, cache)
            weight = model.lm_head.weight
            if model.facts.dtype == torch.bfloat16 and weight is not None:
                self.head_row(weight, torch.zeros(1, config.d_model, dtype=model.facts.dtype))


def _head_row(weight: Tensor, hidden: Tensor) -> Tensor:
    return (weight.float() * hidden.float()).sum(dim=-1).unsqueeze(0)
