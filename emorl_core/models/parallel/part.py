"""Executes a command on this process's part of the model.

The keys and values in rank 0's prefill cache are whole, [2, L, K, T, d] of all K heads; those of running rows are
split. Whole arguments and results exist on rank 0 only; the others pass None and get meaningless results.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.lanes.index import LaneIndex
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.family import Passage, Piece
from emorl_core.models.parallel.group import ProcessGroup

_HEADS = 2  # the dimension along which keys and values are split

_Label = tuple[int, tuple[float, ...]]  # as in `CausalModel.passage`
Run = tuple[tuple[float, ...], list[int]]  # coefficients, and the run of tokens that they act on
Reading = tuple[list[Run], int]  # of a piece: the runs to read, and the label at which it starts


def reading_of(piece: Piece) -> Reading:
    """A piece in a command's format."""
    labels = cast("Sequence[_Label]", piece.passage.labels[piece.start : piece.stop])
    runs = [(point, [token for token, _ in some]) for point, some in groupby(labels, key=itemgetter(1))]
    return runs, piece.start


class Part:
    """Caches are identified by numbers, which rank 0 assigns."""

    def __init__(self, model: CausalModel, group: ProcessGroup) -> None:
        self.model = model
        self._group = group
        self.caches: dict[int, KVCache] = {}

    # -- prompts -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, readings: Sequence[Reading], pasts: Sequence[Memory | None] | None) -> list[Memory]:
        pieces = []
        for i, (runs, start) in enumerate(readings):
            labels = [(token, tuple(point)) for point, tokens in runs for token in tokens]
            past = self._dealt(start, None if pasts is None else pasts[i]) if start else None
            before: tuple[Hashable, ...] = (None,) * start  # already read; never looked at
            pieces.append(Piece(Passage((*before, *labels)), start, start + len(labels), past))
        return [self._collected(memory) for memory in self.model.prefill(pieces)]

    def _dealt(self, tokens: int, whole: Memory | None) -> Memory:
        """This process's heads of a memory of this many tokens."""
        facts, (layers, heads, size) = self.model.facts, self.model.cache_shape
        part = torch.empty(2, layers, heads, tokens, size, dtype=facts.dtype, device=facts.device)
        return Memory(self._group.dealt(None if whole is None else whole.kv, part, _HEADS))

    def _collected(self, part: Memory) -> Memory:
        return Memory(self._group.collected(part.kv, _HEADS))

    # -- rows ----------------------------------------------------------------------------------------------------

    def new_cache(self, number: int) -> None:
        self.caches[number] = self.model.new_cache()

    def drop(self, number: int) -> None:
        del self.caches[number]

    @torch.inference_mode()
    def insert(self, number: int, tokens: int, whole: Memory | None) -> int:
        return self.caches[number].insert(self._dealt(tokens, whole) if tokens else None)

    @torch.inference_mode()
    def memory(self, number: int, place: int, first: int, last: int) -> Memory:
        return self._collected(self.caches[number].memory(place, first, last))

    def rows(self, number: int, method: str, arguments: Sequence[int], flags: Mapping[str, bool]) -> Any:
        """Call a method of a cache that needs no whole tensors."""
        return getattr(self.caches[number], method)(*arguments, **flags)

    def take(self, number: int, places: Sequence[int], other: int) -> None:
        self.caches[other] = self.caches[number].take(places)

    def give_back(self, number: int, places: Sequence[int], other: int) -> None:
        self.caches[number].give_back(places, self.caches[other])

    # -- steps ---------------------------------------------------------------------------------------------------

    def step(self, number: int, tokens: Tensor, lanes: LaneIndex) -> Tensor:
        return self.model.step(tokens, lanes, self.caches[number])

    @torch.inference_mode()
    def head(self, rows: int, capped: bool, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            hidden = torch.empty(rows, self.model.hidden_size, device=self.model.facts.device)
        hidden = self._group.copied(hidden.float())
        return self.model.head(hidden) if capped else self.model.uncapped_head(hidden)

    @torch.inference_mode()
    def head_rows(self, token_ids: Tensor) -> Tensor:
        return self.model.head_rows(token_ids)
