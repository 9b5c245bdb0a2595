"""Keys and values of every running lane row: self-attention (one a token) and cross-attention (one a source token).

Lane rows are kept compact: M rows always occupy places 0 .. M-1, so attention reads views, never gathered copies. A row
that leaves is replaced by the last one. Capacity grows by doubling, in rows and in tokens; when the last row leaves, a
large one goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Whoever reads tokens may round their number up to this, so that shapes change seldom; there is always room for it.
SIZE_STEP = 16
# First capacities. One token more than a power of two: what is read is then never all there is, which would be another
# case to a compiled step.
_ROWS = 4
_TOKENS = 33
# An empty cache on a CPU keeps so many bytes for the next rows, and gives more than that back: room for many rows, made
# once, and room for many tokens, made another time, multiply. A GPU's memory is its own, and graphs know its addresses.
_KEPT_BYTES = 256 * 2**20


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
        layers = self._shape[0]
        # [2, rows, H, tokens, d_kv] each: a tensor of its own for every layer, since a compiled step writes to it.
        self._self = [self._zeros(_ROWS, _TOKENS) for _ in range(layers)]
        self._cross = [self._zeros(_ROWS, _TOKENS) for _ in range(layers)]
        self._moved = True  # rows came, left or moved since `indices` was asked
        self._rows = torch.empty(0, dtype=torch.int64, device=self._device)
        self._source_mask: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held, capacity included."""
        return sum(t.numel() * t.element_size() for t in (*self._self, *self._cross))

    def insert(self, memory: Memory) -> int:
        """Add a lane row that has no tokens yet; returns its place."""
        place = self._new_row(memory.source_length)
        for i, layer in enumerate(self._cross):
            layer[:, place, :, : memory.source_length] = memory.kv[:, i]
        return place

    def fork(self, source: int) -> int:
        """Add a copy of row `source`, tokens included; returns its place."""
        place = self._new_row(self.source_lengths[source])
        self._copy(source, place)
        return place

    def remove(self, place: int, *, wipe: bool = False) -> int | None:
        """Take row `place` out. Returns the old place of the row that moved into it, or None when none had to move.

        `wipe` zeroes what the row leaves behind, here and in all unused rows, where it may have been before it moved:
        values that are not finite would reach later rows through the masked part of their attention (0 * NaN is NaN).
        """
        last = self.count - 1
        if wipe:
            self._wipe(slice(place, place + 1))
        moved = None
        if place != last:
            self._copy(last, place)
            moved = last
        self.lengths.pop()
        self.source_lengths.pop()
        self.count -= 1
        if wipe:
            self._wipe(slice(self.count, None))
        self._moved = True
        if not self.count and self._device.type == "cpu" and self.nbytes > _KEPT_BYTES:
            self.clear()
        return moved

    def take(self, places: Sequence[int]) -> KVCache:
        """A cache of its own with copies of these rows' sources and no tokens: for feeding them alone."""
        layers, heads, d_kv = self._shape
        other = KVCache(layers, heads, d_kv, dtype=self._dtype, device=self._device)
        for place in places:
            kept = [layer[:, place, :, : self.source_lengths[place]] for layer in self._cross]
            other.insert(Memory(torch.stack(kept, dim=1)))
        return other

    def give_back(self, places: Sequence[int], other: KVCache) -> None:
        """Copy the tokens of `take`n rows back into their places."""
        self.reserve(max(other.lengths) - min((self.lengths[place] for place in places), default=0))
        for row, place in enumerate(places):
            tokens = other.lengths[row]
            for mine, theirs in zip(self._self, other._self, strict=True):
                mine[:, place, :, :tokens] = theirs[:, row, :, :tokens]
            self.lengths[place] = tokens

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row."""
        needed = round_size(max(self.lengths, default=0) + tokens)
        rows, capacity = self._capacities
        if needed > capacity:
            self._grow(self._self, rows, _capacity(needed, capacity))

    def reserve_rows(self, rows: int) -> None:
        """Make room for `rows` lane rows in all, for whoever computes spare ones: places from `count` on are nobody's,
        and what is written there need only be finite."""
        held, tokens = self._capacities
        grown = held
        while grown < rows:
            grown *= 2
        if grown > held:
            self._grow(self._self, grown, tokens)
            self._grow(self._cross, grown, self._cross[0].shape[3])

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store new self-attention entries. keys, values [M, q, H, d_kv]; positions [M, q]. Lengths do not change: a
        step that fails half-way can be run again."""
        first = self.lengths[0]
        if self.lengths.count(first) == self.count:  # all rows write side by side: a plain copy is several times faster
            place = slice(first, first + keys.shape[1])
            self._self[layer][0, : self.count, :, place] = keys.transpose(1, 2)
            self._self[layer][1, : self.count, :, place] = values.transpose(1, 2)
            return
        rows = self.indices().unsqueeze(1)
        self._self[layer][0][rows, :, positions] = keys.to(self._dtype)
        self._self[layer][1][rows, :, positions] = values.to(self._dtype)

    def read(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Self-attention keys and values of all rows, [M, H, tokens, d_kv] each; unwritten entries are finite."""
        both = self._self[layer][:, : self.count, :, :tokens]
        return both[0], both[1]

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """All capacity, for a compiled step that reads and writes by itself: self-attention [2, rows, H, tokens, d_kv]
        and cross-attention [2, rows, H, sources, d_kv], a tensor a layer. There are always two rows at least."""
        return self._self, self._cross

    def read_cross(self, layer: int) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values, [M, H, S, d_kv] each, S the longest source among the rows."""
        longest = max(self.source_lengths)
        both = self._cross[layer][:, : self.count, :, :longest]
        return both[0], both[1]

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
        self.reserve_rows(place + 1)
        held = self._cross[0].shape[3]
        if round_size(sources) > held:
            self._grow(self._cross, self._cross[0].shape[1], _capacity(round_size(sources), held))
        self.count += 1
        self.lengths.append(0)
        self.source_lengths.append(sources)
        self._moved = True
        return place

    @property
    def _capacities(self) -> tuple[int, int]:
        """Rows and tokens that `_self` has room for."""
        return self._self[0].shape[1], self._self[0].shape[3]

    def _copy(self, source: int, place: int) -> None:
        tokens, sources = self.lengths[source], self.source_lengths[source]
        for mine, cross in zip(self._self, self._cross, strict=True):
            mine[:, place, :, :tokens] = mine[:, source, :, :tokens]
            cross[:, place, :, :sources] = cross[:, source, :, :sources]
        self.lengths[place], self.source_lengths[place] = tokens, sources

    def _wipe(self, rows: slice) -> None:
        for layer in (*self._self, *self._cross):
            layer[:, rows].zero_()

    def _grow(self, layers: list[Tensor], rows: int, tokens: int) -> None:
        for i, old in enumerate(layers):
            layers[i] = self._zeros(rows, tokens)
            layers[i][:, : self.count, :, : old.shape[3]] = old[:, : self.count]

    def _zeros(self, rows: int, tokens: int) -> Tensor:
        _, heads, d_kv = self._shape
        # Growth can happen within inference mode; a tensor born there could not be changed outside of it.
        with torch.inference_mode(False):
            return torch.zeros(2, rows, heads, tokens, d_kv, dtype=self._dtype, device=self._device)


def round_size(tokens: int) -> int:
    """The next multiple of SIZE_STEP."""
    return -(-tokens // SIZE_STEP) * SIZE_STEP


def _capacity(needed: int, now: int) -> int:
    while now < needed:
        now = 2 * now - 1
    return now
