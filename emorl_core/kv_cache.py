"""Keys and values of every running lane row: self-attention (one a token) and cross-attention (one a source token).

Lane rows are kept compact: M rows always occupy places 0 .. M-1, so attention reads views, never gathered copies. A row
that leaves is replaced by the last one. Capacity grows by doubling, in rows and in tokens, up to what is really used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 4  # first capacity
_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Memory:
    """What prefill leaves for one prompt and lane: cross-attention keys and values [2, L, H, S, d_kv]. Immutable, so it
    can be cached and given to any number of lane rows."""

    kv: Tensor

    @property
    def nbytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()

    @property
    def source_length(self) -> int:
        return self.kv.shape[3]


class KVCache:
    """Slots for lane rows. Letters: L layers, M rows in use, H heads, T tokens, S source tokens."""

    def __init__(self, layers: int, heads: int, d_kv: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (layers, heads, d_kv)
        self._dtype, self._device = dtype, device
        self.clear()

    def clear(self) -> None:
        """Drop all rows and give their memory back."""
        self.count = 0
        self.lengths: list[int] = []  # tokens written, per row
        self.source_lengths: list[int] = []
        self._self = self._zeros(_ROWS, _TOKENS)
        self._cross = self._zeros(_ROWS, _TOKENS)
        self._moved = True  # rows came, left or moved since `indices` was asked
        self._rows = torch.empty(0, dtype=torch.int64, device=self._device)
        self._source_mask: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held, capacity included."""
        return sum(t.numel() * t.element_size() for t in (self._self, self._cross))

    def insert(self, memory: Memory) -> int:
        """Add a lane row that has no tokens yet; returns its place."""
        place = self._new_row(memory.source_length)
        self._cross[:, :, place, :, : memory.source_length] = memory.kv
        return place

    def fork(self, source: int) -> int:
        """Add a copy of row `source`, tokens included; returns its place."""
        tokens, sources = self.lengths[source], self.source_lengths[source]
        place = self._new_row(sources)
        self.lengths[place] = tokens
        self._self[:, :, place, :, :tokens] = self._self[:, :, source, :, :tokens]
        self._cross[:, :, place, :, :sources] = self._cross[:, :, source, :, :sources]
        return place

    def remove(self, place: int, *, wipe: bool = False) -> int | None:
        """Take row `place` out. Returns the old place of the row that moved into it, or None when none had to move.

        `wipe` zeroes what the row leaves behind, here and in all unused rows, where it may have been before it moved:
        values that are not finite would reach later rows through the masked part of their attention (0 * NaN is NaN).
        """
        last = self.count - 1
        if wipe:
            self._self[:, :, place].zero_()
            self._cross[:, :, place].zero_()
        moved = None
        if place != last:
            tokens, sources = self.lengths[last], self.source_lengths[last]
            self._self[:, :, place, :, :tokens] = self._self[:, :, last, :, :tokens]
            self._cross[:, :, place, :, :sources] = self._cross[:, :, last, :, :sources]
            self.lengths[place], self.source_lengths[place] = tokens, sources
            moved = last
        self.lengths.pop()
        self.source_lengths.pop()
        self.count -= 1
        if wipe:
            self._self[:, :, self.count :].zero_()
            self._cross[:, :, self.count :].zero_()
        self._moved = True
        return moved

    def take(self, places: Sequence[int]) -> KVCache:
        """A cache of its own with copies of these rows' sources and no tokens: for feeding them alone."""
        layers, heads, d_kv = self._shape
        other = KVCache(layers, heads, d_kv, dtype=self._dtype, device=self._device)
        for place in places:
            other.insert(Memory(self._cross[:, :, place, :, : self.source_lengths[place]]))
        return other

    def give_back(self, places: Sequence[int], other: KVCache) -> None:
        """Copy the tokens of `take`n rows back into their places."""
        self.reserve(max(other.lengths) - min((self.lengths[place] for place in places), default=0))
        for row, place in enumerate(places):
            tokens = other.lengths[row]
            self._self[:, :, place, :, :tokens] = other._self[:, :, row, :, :tokens]
            self.lengths[place] = tokens

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row."""
        needed = max(self.lengths, default=0) + tokens
        if needed > self._self.shape[4]:
            self._self = self._grown(self._self, self._self.shape[2], _capacity(needed, self._self.shape[4]))

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store new self-attention entries. keys, values [M, q, H, d_kv]; positions [M, q]. Lengths do not change: a
        step that fails half-way can be run again."""
        first = self.lengths[0]
        if self.lengths.count(first) == self.count:  # all rows write side by side: a plain copy is several times faster
            place = slice(first, first + keys.shape[1])
            self._self[0, layer, : self.count, :, place] = keys.transpose(1, 2)
            self._self[1, layer, : self.count, :, place] = values.transpose(1, 2)
            return
        rows = self.indices().unsqueeze(1)
        self._self[0, layer][rows, :, positions] = keys.to(self._dtype)
        self._self[1, layer][rows, :, positions] = values.to(self._dtype)

    def read(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Self-attention keys and values of all rows, [M, H, tokens, d_kv] each; unwritten entries are finite."""
        return self._self[0, layer, : self.count, :, :tokens], self._self[1, layer, : self.count, :, :tokens]

    def read_cross(self, layer: int) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values, [M, H, S, d_kv] each, S the longest source among the rows."""
        longest = max(self.source_lengths)
        return self._cross[0, layer, : self.count, :, :longest], self._cross[1, layer, : self.count, :, :longest]

    def source_mask(self) -> Tensor | None:
        """[M, 1, 1, S] additive mask of the padding in `read_cross`, or None when all sources are equally long."""
        self.indices()
        return self._source_mask

    def advance(self, tokens: int) -> None:
        """All rows have `tokens` more."""
        self.lengths = [length + tokens for length in self.lengths]

    def indices(self) -> Tensor:
        """[M] int64: 0 .. M-1."""
        if self._moved:
            self._rows = torch.arange(self.count, device=self._device)
            lengths = torch.tensor(self.source_lengths, device=self._device)
            self._source_mask = None
            if self.count and min(self.source_lengths) != max(self.source_lengths):
                padding = torch.arange(max(self.source_lengths), device=self._device) >= lengths.unsqueeze(1)
                mask = torch.zeros(padding.shape, dtype=self._dtype, device=self._device)
                self._source_mask = mask.masked_fill(padding, float("-inf"))[:, None, None, :]
            self._moved = False
        return self._rows

    def _new_row(self, sources: int) -> int:
        place = self.count
        rows = self._self.shape[2]
        if place >= rows:
            self._self = self._grown(self._self, 2 * rows, self._self.shape[4])
            self._cross = self._grown(self._cross, 2 * rows, self._cross.shape[4])
        if sources > self._cross.shape[4]:
            self._cross = self._grown(self._cross, self._cross.shape[2], _capacity(sources, self._cross.shape[4]))
        self.count += 1
        self.lengths.append(0)
        self.source_lengths.append(sources)
        self._moved = True
        return place

    def _grown(self, old: Tensor, rows: int, tokens: int) -> Tensor:
        new = self._zeros(rows, tokens)
        new[:, :, : self.count, :, : old.shape[4]] = old[:, :, : self.count]
        return new

    def _zeros(self, rows: int, tokens: int) -> Tensor:
        layers, heads, d_kv = self._shape
        # Growth can happen within inference mode; a tensor born there could not be changed outside of it.
        with torch.inference_mode(False):
            return torch.zeros(2, layers, rows, heads, tokens, d_kv, dtype=self._dtype, device=self._device)


def _capacity(needed: int, now: int) -> int:
    while now < needed:
        now *= 2
    return now
