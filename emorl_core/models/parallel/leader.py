"""Rank 0's model. To the engine it looks like a whole model; each call is sent to the other ranks and executed by
all."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from emorl_core.adapters.adapter import Adapter
from emorl_core.cache.kv import KVCache, Memory
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients, Lane
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.compiling import Compilation
from emorl_core.models.family import Facts, Passage, Piece
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.parallel.part import Part, reading_of
from emorl_core.types import Quantize


class Leader:
    """See `emorl_core.models.family.LaneModel`. Requests are validated before anything is sent, so a command succeeds
    on all ranks, or the group is lost."""

    compiled = False

    def __init__(self, model: CausalModel, group: ProcessGroup) -> None:
        """model: this process's part, with its adapters."""
        self._model, self._group = model, group
        self._part = Part(model, group)
        self._numbers = itertools.count()
        self._gone = deque[int]()  # deleted caches, of which the other ranks have not been told yet
        self._told: LaneIndex | None = None  # lanes of the last step

    @contextmanager
    def told(self, *command: Any) -> Iterator[Part]:
        """Within the block, the other ranks do the same on their part."""
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        with self._group.turn(gone, *command):
            for number in gone:
                self._part.drop(number)
            yield self._part

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        return self._model.facts

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._model.adapters

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        return self._model.linears()

    def parameter_bytes(self) -> dict[str, int]:
        """Of this process."""
        return self._model.parameter_bytes()

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:  # noqa: ARG002
        raise _loaded_whole()

    def quantize(self, how: Quantize) -> None:  # noqa: ARG002
        raise _loaded_whole()

    def compilation(self, folder: Path, *, ragged: bool = False) -> Compilation[Any]:
        return self._model.compilation(folder, ragged=ragged)  # this raises

    def ragged_step(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:  # noqa: ARG002
        raise UnsupportedModel("a model in parts copies no tokens from prompts")

    # -- prompts -------------------------------------------------------------------------------------------------

    def passage(self, lane: Lane, reply: Sequence[int]) -> Passage:
        return self._model.passage(lane, reply)

    def unread(self, lane: Lane, reply: Sequence[int]) -> tuple[int, ...]:
        return self._model.unread(lane, reply)

    def acting(self, lane: Lane) -> Coefficients:
        return self._model.acting(lane)

    def already_said(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        return self._model.already_said(prompt_ids)

    def prefill(self, pieces: Sequence[Piece]) -> list[Memory]:
        self._model.refuse_beyond(max((piece.stop for piece in pieces), default=0))
        readings = [reading_of(piece) for piece in pieces]
        with self.told("prefill", readings) as part:
            return part.prefill(readings, [piece.past for piece in pieces])

    # -- decoding ------------------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        number = next(self._numbers)
        with self.told("new_cache", number) as part:
            part.new_cache(number)
        return self._cache(number)

    def _cache(self, number: int) -> LedCache:
        cache = LedCache(self, number, self._part.caches[number])
        weakref.finalize(cache, self._gone.append, number)
        return cache

    def taken(self, number: int, places: Sequence[int]) -> LedCache:
        """A cache with copies of these rows of another."""
        other = next(self._numbers)
        with self.told("take", number, list(places), other) as part:
            part.take(number, places, other)
        return self._cache(other)

    def step(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        assert isinstance(cache, LedCache)  # from `new_cache`
        self._model.refuse_beyond(max(cache.lengths) + tokens.shape[1])
        points = None if self._told is lanes else lanes.coefficients.tolist()
        with self.told("step", cache.number, tokens.tolist(), points) as part:
            self._told = lanes
            return part.step(cache.number, tokens, lanes)

    def head(self, hidden: Tensor) -> Tensor:
        with self.told("head", len(hidden), True) as part:
            return part.head(len(hidden), True, hidden)

    def uncapped_head(self, hidden: Tensor) -> Tensor:
        with self.told("head", len(hidden), False) as part:
            return part.head(len(hidden), False, hidden)

    def head_rows(self, token_ids: Tensor) -> Tensor:
        with self.told("head_rows", token_ids.tolist()) as part:
            return part.head_rows(token_ids)


class LedCache(KVCache):
    """This process's part of a cache of lane rows. Changes of rows are commands to all ranks; steps advance tokens on
    every rank."""

    def __init__(self, leader: Leader, number: int, own: KVCache) -> None:
        super().__init__(own.own)
        self.number = number
        self._leader = leader

    def bound(self, rows: int, prompt: int, reply: int, most_bytes: int) -> None:
        self._all("bound", rows, prompt, reply, most_bytes)

    def clear(self) -> None:
        self._all("clear")

    def insert(self, memory: Memory | None) -> int:
        tokens = 0 if memory is None else memory.length
        with self._leader.told("insert", self.number, tokens) as part:
            return part.insert(self.number, tokens, memory)

    def memory(self, place: int, first: int, last: int) -> Memory:
        """Whole."""
        with self._leader.told("memory", self.number, place, first, last) as part:
            return part.memory(self.number, place, first, last)

    def fork(self, source: int) -> int:
        place: int = self._all("fork", source)
        return place

    def remove(self, place: int, *, wipe: bool = False) -> int | None:
        moved: int | None = self._all("remove", place, wipe=wipe)
        return moved

    def take(self, places: Sequence[int]) -> KVCache:
        return self._leader.taken(self.number, places)

    def give_back(self, places: Sequence[int], other: KVCache) -> None:
        assert isinstance(other, LedCache)  # from `take`
        with self._leader.told("give_back", self.number, list(places), other.number) as part:
            part.give_back(self.number, places, other.number)

    def _all(self, method: str, *arguments: int, **flags: bool) -> Any:
        """Call a method of the cache on every rank."""
        with self._leader.told("rows", self.number, method, arguments, flags) as part:
            return part.rows(self.number, method, arguments, flags)


def _loaded_whole() -> UnsupportedModel:
    return UnsupportedModel("a model in parts has the adapters and the number format that it was loaded with")
