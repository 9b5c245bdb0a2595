"""T5's decoding step, compiled, and the head's product for one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache
from emorl_core.models.compiled import Argument, CompiledStep, tokens_read
from emorl_core.models.compiling import Compilation, Compiled, Recipe, Shape
from emorl_core.models.t5.model import T5
from emorl_core.models.t5.step import StepFunction, source_mask


class CompiledT5Step(CompiledStep):
    """`T5.step` for one new token per lane row, and `T5.ragged_step`."""

    MAKE = "emorl_core.models.t5.step:step_of"
    SIZES = (
        {0: "rows", 2: "tokens"},  # bias
        {0: "rows", 1: "sources"},  # source_mask
        {1: "held_rows", 3: "held_tokens"},  # own
        {1: "held_source_rows", 3: "held_sources"},  # cross
    )

    def __init__(self, model: T5, *, ragged: bool) -> None:
        super().__init__(StepFunction(model), model.embedding, len(model.adapters), ragged=ragged)
        self._positions = model.decoder_positions
        self._head_row: Compiled | None = None

    def _arrange(self, cache: KVCache, places: Tensor) -> None:
        self._source_mask = source_mask(cache, max(2, cache.count))[places]

    def _arguments(self, cache: KVCache, positions: Tensor) -> tuple[Argument, ...]:
        bias = self._positions.causal(positions.unsqueeze(1), tokens_read(positions))[:, :, 0].float()  # [R, H, T]
        assert cache.cross is not None
        return bias.contiguous(), self._source_mask, cache.own.layers, cache.cross.layers

    def take_head(self, function: Compiled) -> None:
        """Use this function as `head_row`."""
        self._head_row = function

    def head_row(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """weight [V, D] and hidden [1, D] -> [1, V] float32. Only for bfloat16: in float32 the CPU library's product is
        as fast."""
        return None if self._head_row is None else self._head_row([weight, hidden])


def compilation(model: T5, folder: Path, ragged: bool = False) -> Compilation[T5]:
    """folder: where compiled functions are stored; ragged: compile `ragged_step` as well."""
    step = CompiledT5Step(model, ragged=ragged)
    fast = model.with_step(step)
    recipes = step.recipes(fast.new_cache())
    weight, steps = model.lm_head.weight, len(recipes)
    if weight is not None and weight.dtype == torch.bfloat16:
        hidden = torch.empty(1, model.config.d_model, dtype=weight.dtype)
        shapes = (Shape.of(weight, {}), Shape.of(hidden, {}))
        recipes.append(Recipe(f"{__name__}:head_row_of", (), shapes))

    def finish(functions: list[Compiled]) -> T5:
        step.take(functions[:steps], fast.new_cache())
        for function in functions[steps:]:
            step.take_head(function)
        return fast

    return Compilation(recipes, folder, finish)


def head_row_of() -> Callable[[Tensor, Tensor], Tensor]:
    """The function to compile."""

    def head_row(weight: Tensor, hidden: Tensor) -> Tensor:
        return (weight.float() * hidden.float()).sum(dim=-1).unsqueeze(0)

    return head_row
