"""The lean decoder's step, compiled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache
from emorl_core.models.causal.attention import Masks
from emorl_core.models.causal.lean import LeanDecoder
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.causal.step import StepFunction
from emorl_core.models.compiled import Argument, CompiledStep, tokens_read
from emorl_core.models.compiling import Compilation, Compiled


class CompiledLeanStep(CompiledStep):
    """`CausalModel.step` for one new token a lane row, and `CausalModel.ragged_step`."""

    MAKE = "emorl_core.models.causal.step:step_of"
    SIZES = (
        {0: "rows"},  # cosines
        {0: "rows"},  # sines
        {0: "rows", 1: "tokens"},  # masks
        {1: "held_rows", 3: "held_tokens"},  # own
    )

    def __init__(self, model: CausalModel, *, ragged: bool) -> None:
        decoder = model.decoder
        assert isinstance(decoder, LeanDecoder)
        function = StepFunction(decoder, model.facts.dtype)
        super().__init__(function, decoder.embedding, len(model.adapters), ragged=ragged)
        self._rotary, self._windows = decoder.rotary, function.windows

    def _arrange(self, cache: KVCache, places: Tensor) -> None:
        """Does nothing: all arguments are new in every step."""

    def _arguments(self, cache: KVCache, positions: Tensor) -> tuple[Argument, ...]:
        cosines, sines = self._rotary(positions)
        distance = positions.unsqueeze(1) - torch.arange(tokens_read(positions))
        made = Masks(torch.float32)
        masks = [made.within(distance, window) for window in self._windows]
        return cosines.contiguous(), sines.contiguous(), masks, cache.own.layers


def compilation(model: CausalModel, folder: Path, ragged: bool = False) -> Compilation[CausalModel]:
    """folder: where compiled functions are stored; ragged: compile `ragged_step` as well."""
    step = CompiledLeanStep(model, ragged=ragged)
    fast = model.with_step(step)

    def finish(functions: list[Compiled]) -> CausalModel:
        step.take(functions, fast.new_cache())
        return fast

    return Compilation(step.recipes(fast.new_cache()), folder, finish)
