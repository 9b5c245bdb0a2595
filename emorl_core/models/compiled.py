"""A decoding step on a CPU as one compiled function, which fuses its small operations (figures in docs/log.md).

Letters: M lane rows, R tokens, D hidden, K adapters that a row uses at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import SIZE_STEP, round_size
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.models.compiling import Compiled, Names, Recipe, Shape
from emorl_core.models.step_linear import StepTensors, multiplying

Argument = Tensor | Sequence[Tensor]


class StepFunction(Protocol):
    """A decoding step of one model, and the recipe with which another process can rebuild it."""

    @property
    def tensors(self) -> StepTensors: ...

    @property
    def settings(self) -> tuple[Any, ...]: ...


class CompiledStep(ABC):
    """A model's `step` for one new token a lane row, and its `ragged_step`, compiled for all sizes. Not for training;
    for one thread.

    In a compiled function every token is a row with a place in the cache. If several rows may share a place, it gathers
    keys and values by place, which takes some 5 % longer; hence two functions, and the second only on request.
    """

    MAKE: str  # the recipe's
    SIZES: tuple[Names, ...]  # of `_arguments`

    def __init__(self, function: StepFunction, embedding: FrozenMatrix, adapters: int, *, ragged: bool) -> None:
        self._settings, self._tensors = function.settings, function.tensors
        self._embedding = embedding
        self._adapters = adapters
        # There are separate functions for rows with one adapter each and for rows that sum several, see
        # `LaneIndex.used`.
        self._kinds = [(kind, many) for many in sorted({False, ragged}) for kind in sorted({1, max(1, adapters)})]
        self._functions: dict[tuple[int, bool], Compiled] = {}
        self._lanes: LaneIndex | None = None

    @abstractmethod
    def _arrange(self, cache: KVCache, places: Tensor) -> None:
        """Called when lane rows were added, removed or moved; the tokens of a step have these places [R], spare ones
        included."""

    @abstractmethod
    def _arguments(self, cache: KVCache, positions: Tensor) -> tuple[Argument, ...]:
        """The function's arguments between the positions [R] and the parameters."""

    def __call__(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """tokens [M, 1], lanes of M rows -> last hidden states [M, D]; writes the new token's keys and values."""
        return self._run(tokens[:, 0], [1] * cache.count, lanes, cache, ragged=False)

    def ragged(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor | None:
        """As `LaneModel.ragged_step`; None: it is not compiled."""
        if not any(many for _, many in self._kinds):
            return None
        return self._run(tokens, counts, lanes, cache, ragged=True)

    def _run(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache, *, ragged: bool) -> Tensor:
        arguments = self._whole(tokens, counts, lanes, cache)
        flat: list[Tensor] = []
        for each in arguments:
            if isinstance(each, Tensor):
                flat.append(each)
            else:
                flat += each
        with multiplying(self._tensors.matrices):
            hidden = self._functions[self._used.shape[1], ragged](flat)
        cache.advance_each(counts)
        return hidden[: len(tokens)]

    def _whole(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> tuple[Argument, ...]:
        cache.reserve_each(counts)
        places, at = cache.own.ahead(counts)
        if len(places) == 1:  # a size of 1 would be specialised, so a single token gets a spare row
            places, at, tokens = [0, 1], at * 2, tokens.expand(2)
        if self._lanes is not lanes:
            self._lanes, spare = lanes, len(places) - lanes.rows
            self._used, self._coefficients = (torch.cat([own, own[:1].expand(spare, -1)]) for own in lanes.used())
            self._places = torch.tensor(places)
            self._arrange(cache, self._places)
        x = self._embedding.rows(tokens).contiguous()
        positions = torch.tensor(at)
        varying = self._arguments(cache, positions)
        return (x, self._used, self._coefficients, self._places, positions, *varying, self._tensors.parameters)

    # -- compiling -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def recipes(self, cache: KVCache) -> list[Recipe]:
        """One recipe for each kind of rows and of step; cache: an empty one, which is filled with examples."""
        layers, (_, _, heads, _, size) = len(cache.own.layers), cache.own.layers[0].shape
        for length in (3, 5, 2 * SIZE_STEP + 1):  # sizes that are equal by coincidence would be treated as one
            cache.insert(Memory(torch.zeros(2, layers, heads, length, size, dtype=cache.own.dtype)))
        rows: tuple[Names, ...] = ({0: "rows"},) * 5
        made = []
        for kind, ragged in self._kinds:
            tokens = torch.zeros(cache.count, dtype=torch.int64)
            arguments = self._whole(tokens, [1] * cache.count, self._of_kind(kind, cache), cache)
            shapes = [_shapes(each, names) for each, names in zip(arguments, (*rows, *self.SIZES, {}), strict=True)]
            settings = (*self._settings, True) if ragged else self._settings
            made.append(Recipe(self.MAKE, settings, tuple(shapes)))
        return made

    @torch.inference_mode()
    def take(self, functions: Sequence[Compiled], cache: KVCache) -> None:
        """Use these functions, made from `recipes`, after running each once; cache: an empty one."""
        layers, (_, _, heads, _, size) = len(cache.own.layers), cache.own.layers[0].shape
        self._functions = dict(zip(self._kinds, functions, strict=True))
        cache.insert(Memory(torch.zeros(2, layers, heads, 1, size, dtype=cache.own.dtype)))
        for kind, ragged in self._kinds:
            self._run(torch.zeros(1, dtype=torch.int64), [1], self._of_kind(kind, cache), cache, ragged=ragged)
        self._lanes = None

    def _of_kind(self, kind: int, cache: KVCache) -> LaneIndex:
        """Rows that use this many adapters each, or all if there are fewer."""
        own = (torch.arange(self._adapters) < kind).float()
        return LaneIndex(own.expand(cache.count, -1))


def tokens_read(positions: Tensor) -> int:
    """Tokens that self-attention reads in a step at these positions."""
    return round_size(int(positions.max()) + 1)


def _shapes(argument: Argument, names: Names) -> Shape | list[Shape]:
    return Shape.of(argument, names) if isinstance(argument, Tensor) else [Shape.of(each, names) for each in argument]
