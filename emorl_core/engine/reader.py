"""Prefill: reads prompts into the cache, a bounded number of tokens per step, each common prefix once.

The passages of an admitted branch's lanes are read here before it gets lane rows. Meanwhile it holds its slot, and
running branches still get their token in every step.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor

from emorl_core.cache.kv import Memory
from emorl_core.cache.prefix import PrefillCache, common
from emorl_core.engine.sequences import Branch
from emorl_core.lanes.lane import Lane
from emorl_core.models.family import LaneModel, Passage, Piece

# If no running branch would wait for its next token, a step reads this many times as much: larger products take less
# time per token, and new arrivals are still admitted soon.
_WHERE_NONE_RUNS = 8


class Reader:
    """Reads the passages of branches' lanes; see `LaneModel.passage`.

    Of several branches, the oldest gets at least half of a step's tokens, so that it is never starved. The others
    follow in the order of what they have left, so that short prompts do not wait for long ones.
    """

    def __init__(self, model: LaneModel, cache: PrefillCache, most_tokens: int | None) -> None:
        """most_tokens: read per step beside running branches, where passages can be split; None: all."""
        self.model = model
        self.cache = cache
        self.most_tokens = most_tokens
        self.hits = 0  # passages found whole in the cache
        self.misses = 0
        self.tokens_found = 0  # tokens of passages that were cached, or read for another branch
        self.tokens_computed = 0
        self._adapters = model.adapters
        self._wanted: dict[Branch, dict[Lane, _Reading]] = {}  # in order of arrival
        self._readings: dict[tuple[Hashable, ...], _Reading] = {}  # by labels, those of `_wanted`

    def __contains__(self, branch: object) -> bool:
        return branch in self._wanted

    @property
    def branches(self) -> list[Branch]:
        return list(self._wanted)

    @property
    def nbytes(self) -> int:
        """Bytes held for passages being read, beside the cache."""
        return sum(reading.nbytes for reading in self._readings.values())

    def add(self, branch: Branch) -> None:
        """Look up the branch's passages in the cache; the rest is read from now on."""
        if self._adapters is not self.model.adapters:  # adapters were attached: cached memories are no longer valid
            self._adapters = self.model.adapters
            self.cache.clear()
        self._wanted[branch] = {lane: self._reading(self.model.passage(lane, branch.tokens)) for lane in branch.lanes}

    def _reading(self, passage: Passage) -> _Reading:
        reading = self._readings.get(passage.labels)
        if reading is not None:
            return reading
        reading = _Reading(passage)
        known, memory = self.cache.find(passage.labels)
        if memory is not None:
            reading.take(memory.kv, known)
        if passage.labels:
            self.hits += not reading.left
            self.misses += bool(reading.left)
        self.tokens_found += known * passage.width
        shared = {other: common(other.passage.labels, passage.labels) for other in self._readings.values()}
        leader = max(shared, key=lambda other: shared[other], default=None)
        if leader is not None and shared[leader] > known:
            reading.leader, reading.shared = leader, shared[leader]
            self._follow(reading)
        self._readings[passage.labels] = reading
        return reading

    @torch.inference_mode()
    def read(self, only: Branch | None = None, *, whole: bool = False, beside: bool = True) -> list[Branch]:
        """Read more, and return the branches (of all, or only `only`) that are fully read. If the model raises, nothing
        read before is lost. whole: ignore the limit on tokens. beside: whether running branches wait meanwhile.
        """
        branches = self.branches if only is None else [only]
        left = math.inf if whole or self.most_tokens is None else self.most_tokens * (1 if beside else _WHERE_NONE_RUNS)
        if whole:
            self._wait_for_nobody_else(branches)
        at_least = 1
        while left > 0 and (stops := self._plan(branches, left, at_least)):
            pieces = [Piece(each.passage, each.done, stop, each.memory) for each, stop in stops.items()]
            for (reading, stop), memory in zip(stops.items(), self.model.prefill(pieces), strict=True):
                tokens = (stop - reading.done) * reading.passage.width
                self.tokens_computed += tokens
                left -= tokens
                reading.take(memory.kv, stop)
            for reading in self._readings.values():
                self._follow(reading)
            at_least = 0
        return [branch for branch in branches if not self._left(branch)]

    def memories(self, branch: Branch) -> Mapping[Lane, Memory | None]:
        """The memory of each lane of a branch; None where there was nothing to read."""
        return {lane: reading.memory for lane, reading in self._wanted[branch].items()}

    def keep_lanes(self, branch: Branch, lanes: Iterable[Lane]) -> None:
        """The branch needs no other lanes any more."""
        kept = set(lanes)
        self._wanted[branch] = {lane: reading for lane, reading in self._wanted[branch].items() if lane in kept}
        self._forget()

    def remove(self, branch: Branch, *, poisoned: bool = False) -> None:
        """Release the branch's memories, which it has taken or no longer needs. The cache keeps them, unless they are
        poisoned or contain part of a reply that no later prompt begins with."""
        keep = branch.alone or not branch.tokens
        for reading in self._wanted.pop(branch, {}).values():
            if poisoned:
                self.cache.discard(reading.passage.labels)
            elif keep and reading.memory is not None:
                self.cache.put(reading.passage.labels[: reading.done], reading.memory)
        self._forget()

    def clear(self) -> None:
        """Forget every branch; the cache stays."""
        self._wanted.clear()
        self._readings.clear()

    def _forget(self) -> None:
        """Drop readings that nobody waits for. Those that followed them continue by themselves."""
        wanted = {reading for readings in self._wanted.values() for reading in readings.values()}
        self._readings = {labels: reading for labels, reading in self._readings.items() if reading in wanted}
        for reading in wanted:
            if reading.leader is not None and reading.leader not in wanted:
                reading.leader = None

    def _follow(self, reading: _Reading) -> None:
        """Take over what another reading has read of their common prefix."""
        leader = reading.leader
        if leader is None:
            return
        done = min(leader.done, reading.shared)
        if done > reading.done and leader.memory is not None:
            width = reading.passage.width
            self.tokens_found += (done - reading.done) * width
            reading.take(leader.memory.kv[:, :, :, reading.done * width : done * width], done)
        if reading.done >= reading.shared:
            reading.leader = None

    def _wait_for_nobody_else(self, branches: list[Branch]) -> None:
        own = {reading for branch in branches for reading in self._wanted[branch].values()}
        for reading in own:
            if reading.leader not in own:
                reading.leader = None

    def _plan(self, branches: list[Branch], tokens: float, at_least: int) -> dict[_Reading, int]:
        """How far readings go now: the label at which each stops. at_least: labels that are read in any case, since a
        piece that cannot be split may exceed the tokens allowed."""
        stops: dict[_Reading, int] = {}

        def spend(branch: Branch, most: float) -> int:
            """Plan the readings of a branch; returns the number of tokens that they take."""
            spent = 0
            for reading in self._wanted[branch].values():
                width = reading.passage.width
                start = stops.get(reading, reading.done)
                left = 0 if reading.leader is not None else len(reading.passage.labels) - start
                labels = int(min(left, max((most - spent) // width, 0 if stops else at_least)))
                if labels:
                    stops[reading] = start + labels
                    spent += labels * width
            return spent

        busy = [branch for branch in branches if self._left(branch)]
        first, others = busy[:1], sorted(busy[1:], key=self._left)
        for branch in first:
            tokens -= spend(branch, tokens / 2 if others else tokens)
        for branch in [*others, *first]:
            tokens -= spend(branch, tokens)
        return stops

    def _left(self, branch: Branch) -> int:
        """Tokens."""
        return sum(reading.left for reading in self._wanted[branch].values())


class _Reading:
    """One passage being read, for all branches that need it."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.done = 0  # labels
        self.leader: _Reading | None = None  # another reading, with the same first `shared` labels
        self.shared = 0
        self._kv: Tensor | None = None  # [2, L, K, S, d] of the whole passage

    @property
    def left(self) -> int:
        """Tokens left to read."""
        return (len(self.passage.labels) - self.done) * self.passage.width

    @property
    def nbytes(self) -> int:
        return 0 if self._kv is None else self._kv.numel() * self._kv.element_size()

    @property
    def memory(self) -> Memory | None:
        """The memory so far; a view."""
        return None if self._kv is None else Memory(self._kv[:, :, :, : self.done * self.passage.width])

    def take(self, kv: Tensor, done: int) -> None:
        """kv: of the labels from `self.done` to `done`."""
        first, last, total = (labels * self.passage.width for labels in (self.done, done, len(self.passage.labels)))
        if self._kv is None and last == total:
            self._kv = kv  # all at once
        else:
            if self._kv is None:
                self._kv = kv.new_empty((*kv.shape[:3], total, kv.shape[4]))
            self._kv[:, :, :, first:last] = kv
        self.done = done
