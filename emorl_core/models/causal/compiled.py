"""The lean decoder's step on a CPU through `torch.compile`, which fuses its small operations."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import SIZE_STEP, round_size
from emorl_core.lanes.index import LaneIndex
from emorl_core.models.causal.attention import Masks
from emorl_core.models.causal.lean import LeanDecoder
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.causal.step import StepFunction
from emorl_core.models.compiling import check_compiler, compile_for_one_model, compiling


class CompiledStep:
    """`CausalModel.step` for one new token a lane row, compiled once for all sizes. Not for training."""

    def __init__(self, model: CausalModel) -> None:
        """Compiles, which takes a minute or two the first time and seconds when the compiler's cache on
        disk knows the model.

        Raises:
            UnsupportedModel: torch cannot compile here (most often: no C++ compiler).
        """
        check_compiler()
        decoder = model.decoder
        assert isinstance(decoder, LeanDecoder)
        self._model, self._decoder = model, decoder
        step = StepFunction(decoder, model.facts.dtype)
        self._parameters, self._windows = step.parameters, step.windows
        for parameter in self._parameters:
            torch._dynamo.mark_static(parameter)
        self._step = compile_for_one_model(step.function, dynamic=True)
        self._lanes: LaneIndex | None = None
        self._compiled = False
        self._warm_up()
        self._compiled = True

    def __call__(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """tokens [M, 1], lanes of M rows -> last hidden states [M, D]; writes the new token's keys and values."""
        count = cache.count
        cache.reserve(1)
        # The compiler specialises on a size of 1, so a single row is padded to two.
        rows = max(2, count)
        if self._lanes is not lanes:
            self._lanes, spare = lanes, rows - count
            self._used, self._coefficients = (torch.cat([own, own[:1].expand(spare, -1)]) for own in lanes.used())
            self._places = torch.arange(rows)
        positions = torch.tensor(cache.lengths + cache.lengths[:1] * (rows - count))
        x = self._decoder.embedding.rows(tokens[:, 0])
        x = x.repeat(2, 1) if count == 1 else x
        cosines, sines = self._decoder.rotary(positions)
        total = round_size(max(cache.lengths) + 1)
        distance = positions.unsqueeze(1) - torch.arange(total)
        made = Masks(torch.float32)
        masks = [made.within(distance, window) for window in self._windows]
        own = cache.own.layers
        if not self._compiled:  # the compiler is told once which sizes never change
            for tensor in (x, self._used, self._coefficients):
                torch._dynamo.mark_static(tensor, 1)
            for tensor in (cosines, sines):
                torch._dynamo.mark_static(tensor, [1, 2])
            for layer in own:
                torch._dynamo.mark_static(layer, [0, 2, 4])
        hidden = self._step(
            x,
            self._used,
            self._coefficients,
            self._places,
            positions,
            cosines,
            sines,
            masks,
            own,
            self._parameters,
        )
        cache.advance(1)
        return hidden[:count]

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile with example sizes that show which of them are the same: rows, tokens read and the capacities must
        not be, so here they are 3, 48 and 4, 65."""
        model = self._model
        cache, adapters = model.new_cache(), len(model.adapters)
        store = cache.own
        layers, (_, _, heads, _, size) = len(store.layers), store.layers[0].shape
        for length in (3, 5, 2 * SIZE_STEP + 1):
            cache.insert(Memory(torch.zeros(2, layers, heads, length, size, dtype=store.dtype)))
        # Rows of one adapter each, then rows that sum several: each is compiled for itself (see `LaneIndex.used`), and
        # the first request of a kind should not wait for that.
        summed = [(torch.arange(adapters) < used).float() for used in sorted({min(1, adapters), adapters})]
        with compiling():
            for coefficients in summed:
                lanes = LaneIndex(coefficients.expand(cache.count, -1))
                self(torch.zeros(cache.count, 1, dtype=torch.int64), lanes, cache)
