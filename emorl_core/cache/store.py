"""Storage for keys and values: compact rows, each with its own length, that grows by doubling.

Letters: L layers, M rows in use, K key-value heads (fewer than the query heads where they are grouped), T tokens.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

# The number of tokens read is rounded up to this, so that shapes change rarely; capacity always allows it.
SIZE_STEP = 16
# Initial capacities. One token more than a power of two: a read then never covers the whole tensor, for which a
# compiled step would be specialised.
_ROWS = 4
_TOKENS = 33
_MAPPED_BYTES = 2**20  # from this size on, a tensor has its own pages


class Store:
    """Keys and values of M rows, which always occupy places 0 .. M-1, so that attention reads views and never gathers
    copies. Entries that were never written are finite, since attention multiplies them by 0."""

    def __init__(self, layers: int, kv_heads: int, head_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (layers, kv_heads, head_size)
        # Bounds on doubling, rows and tokens; None: no bound. What is needed at once is always allocated.
        self.most: tuple[int, int] | None = None
        self.dtype, self.device = dtype, device
        self._rows: Tensor | None = None
        self._padding_mask: Tensor | None = None
        self._padding_stale = True
        self.clear()

    def clear(self) -> None:
        """Drop all rows and free their memory."""
        self.lengths: list[int] = []  # tokens held, per row
        # [2, rows, K, tokens, head_size] each: a separate tensor for every layer, since a compiled step writes to it.
        self.layers = [self._zeros(_ROWS, _TOKENS) for _ in range(self._shape[0])]
        self._changed()

    @property
    def count(self) -> int:
        """M."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes held, capacity included."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    @property
    def capacity(self) -> int:
        """Tokens that every row has room for."""
        return self.layers[0].shape[3]

    # -- rows ----------------------------------------------------------------------------------------------------

    def add(self, kv: Tensor | None = None) -> int:
        """Add a row, empty or with kv [2, L, K, T, head_size]; returns its place."""
        length = 0 if kv is None else kv.shape[3]
        place = self._new_row(length)
        if kv is not None:
            for i, layer in enumerate(self.layers):
                layer[:, place, :, :length] = kv[:, i]
        return place

    def fork(self, source: int) -> int:
        """Add a copy of row `source`; returns its place."""
        place = self._new_row(self.lengths[source])
        self._copy(source, place)
        return place

    def remove(self, place: int, *, wipe: bool = False) -> None:
        """Take row `place` out; the last row moves there.

        `wipe` zeroes the row's values, here and in all unused rows, where it may have been before it moved. Values that
        are not finite would reach later rows through the masked part of their attention (0 * NaN is NaN).
        """
        if wipe:
            self._wipe(slice(place, place + 1))
        last = self.count - 1
        if place != last:
            self._copy(last, place)
        self.lengths.pop()
        if wipe:
            self._wipe(slice(self.count, None))
        self._changed()

    def row(self, place: int, first: int = 0, last: int | None = None) -> Tensor:
        """A copy of row `place`, [2, L, K, T, head_size], or of its tokens first .. last - 1."""
        last = self.lengths[place] if last is None else last
        return torch.stack([layer[:, place, :, first:last] for layer in self.layers], dim=1)

    def extend(self, place: int, other: Store, row: int) -> None:
        """Append to row `place` the tokens that `row` of another store has beyond it."""
        first, length = self.lengths[place], other.lengths[row]
        self.reserve(length - first)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine[:, place, :, first:length] = theirs[:, row, :, first:length]
        self.lengths[place] = length
        self._changed()

    # -- tokens --------------------------------------------------------------------------------------------------

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row."""
        self._make_room(0, max(self.lengths, default=0) + tokens)

    def reserve_each(self, counts: Sequence[int]) -> None:
        """Make room for this many more tokens in each row."""
        self._make_room(0, max((n + more for n, more in zip(self.lengths, counts, strict=True)), default=0))

    def reserve_rows(self, rows: int) -> None:
        """Make room for `rows` rows in all, for steps that are rounded up to more rows than `count`. Spare rows are
        empty; whatever is written there need only be finite."""
        self._make_room(rows, 0)

    def bytes_of(self, rows: int, tokens: int) -> int:
        """Bytes of a store that never holds more than this many rows of this many tokens; see `least`."""
        layers, heads, size = self._shape
        rows, tokens = least(rows, tokens)
        return 2 * layers * heads * size * self.dtype.itemsize * rows * tokens

    def shrink(self) -> None:
        """Free capacity beyond `most`."""
        if self.most is not None:
            self._resize(*(min(held, most) for held, most in zip(self._held, self.most, strict=True)))

    def ahead(self, counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Row and position of each of the next tokens, given how many each row gets, row by row."""
        places = [place for place, more in enumerate(counts) for _ in range(more)]
        return places, [n + i for n, more in zip(self.lengths, counts, strict=True) for i in range(more)]

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, places: Tensor | None = None) -> None:
        """Store new entries. keys, values [M, q, K, head_size]; positions [M, q], where each row's length begins.
        Lengths do not change, so a step that fails half-way can be run again.

        places: [M] rows that these belong to; None: row 0, 1, ...
        """
        first = self.lengths[0]
        # All rows write side by side: a plain copy is several times faster.
        if places is None and self.lengths.count(first) == self.count:
            place = slice(first, first + keys.shape[1])
            self.layers[layer][0, : self.count, :, place] = keys.transpose(1, 2)
            self.layers[layer][1, : self.count, :, place] = values.transpose(1, 2)
            return
        rows = (self.indices() if places is None else places).unsqueeze(1)
        self.layers[layer][0][rows, :, positions] = keys.to(self.dtype)
        self.layers[layer][1][rows, :, positions] = values.to(self.dtype)

    def read(self, layer: int, tokens: int | None = None, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, [M, K, tokens, head_size] each; None: as many as the longest row has.

        places: of these rows instead, copies.
        """
        tokens = max(self.lengths) if tokens is None else tokens
        rows = slice(self.count) if places is None else places
        both = self.layers[layer][:, rows, :, :tokens]
        return both[0], both[1]

    def advance(self, tokens: int) -> None:
        """All rows have gained `tokens` tokens."""
        self.advance_each([tokens] * self.count)

    def advance_each(self, counts: Sequence[int]) -> None:
        """Each row has gained this many tokens."""
        self.lengths = [length + more for length, more in zip(self.lengths, counts, strict=True)]
        self._padding_stale = True

    def shorten(self, place: int, tokens: int, *, wipe: bool = False) -> None:
        """Row `place` loses its last tokens. `wipe`: overwrite them, since they may not be finite (see `remove`)."""
        length = self.lengths[place]
        self.lengths[place] = length - tokens
        self._padding_stale = True
        for layer in self.layers if wipe else ():
            layer[:, place, :, length - tokens : length].zero_()

    def indices(self) -> Tensor:
        """[M] int64: 0 .. M-1."""
        if self._rows is None:
            self._rows = torch.arange(self.count, device=self.device)
        return self._rows

    def padding(self) -> Tensor | None:
        """[M, 1, 1, T] additive mask that hides what `read` returns beyond a row's length, or None when all are equally
        long."""
        if self._padding_stale:
            self._padding_mask = self._new_padding()
            self._padding_stale = False
        return self._padding_mask

    # -- storage -------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Rows were added, removed or moved."""
        self._rows = self._padding_mask = None
        self._padding_stale = True

    def _new_padding(self) -> Tensor | None:
        longest = max(self.lengths, default=0)
        if min(self.lengths, default=0) == longest:
            return None
        lengths = torch.tensor(self.lengths, device=self.device).unsqueeze(1)
        padding = torch.arange(longest, device=self.device) >= lengths
        mask = torch.zeros(padding.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill(padding, float("-inf"))[:, None, None, :]

    def _new_row(self, length: int) -> int:
        self._make_room(self.count + 1, length)
        self.lengths.append(length)
        self._changed()
        return self.count - 1

    @property
    def _held(self) -> tuple[int, int]:
        """Capacity: rows and tokens."""
        return self.layers[0].shape[1], self.capacity

    def _make_room(self, rows: int, tokens: int) -> None:
        """Grow to at least this many rows, with this many tokens each."""
        held_rows, held_tokens = self._held
        grown_rows, grown_tokens = held_rows, _capacity(round_size(tokens), held_tokens)
        while grown_rows < rows:
            grown_rows *= 2
        if (grown_rows, grown_tokens) == (held_rows, held_tokens):
            return
        if self.most is not None:
            grown_rows, grown_tokens = max(rows, min(grown_rows, self.most[0])), min(grown_tokens, self.most[1])
        self._resize(grown_rows, max(grown_tokens, round_size(tokens)))

    def _resize(self, rows: int, tokens: int) -> None:
        """Resize to this many rows and tokens, but to no fewer than are in use."""
        rows, tokens = max(rows, self.count), max(tokens, round_size(max(self.lengths, default=0)))
        for i, old in enumerate(self.layers):  # one by one, so that at most one layer is in memory twice
            self.layers[i] = self._zeros(rows, tokens)
            kept = min(tokens, old.shape[3])
            self.layers[i][:, : self.count, :, :kept] = old[:, : self.count, :, :kept]

    def _copy(self, source: int, place: int) -> None:
        length = self.lengths[source]
        for layer in self.layers:
            layer[:, place, :, :length] = layer[:, source, :, :length]
        self.lengths[place] = length

    def _wipe(self, rows: slice) -> None:
        for layer in self.layers:
            layer[:, rows].zero_()

    def _zeros(self, rows: int, tokens: int) -> Tensor:
        _, heads, head_size = self._shape
        shape = (2, rows, heads, tokens, head_size)
        # Growth can happen within inference mode; a tensor created there could not be modified outside of it.
        with torch.inference_mode(False):
            if self.device.type != "cpu":
                return torch.zeros(shape, dtype=self.dtype, device=self.device)
            size = math.prod(shape) * self.dtype.itemsize
            if size < _MAPPED_BYTES:
                return torch.zeros(shape, dtype=self.dtype)
            # The system zeroes pages on first touch. One long row grows all rows, and what the short ones never use
            # costs neither time nor memory. With huge pages, which allocators request for large arrays, it would: a
            # row's heads span only a few of them, so all would be touched.
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if sys.platform == "linux":
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            return torch.frombuffer(pages, dtype=self.dtype).view(shape)

    def empty_like(self) -> Store:
        """A store of the same shapes without rows."""
        layers, heads, head_size = self._shape
        return Store(layers, heads, head_size, dtype=self.dtype, device=self.device)


def least(rows: int, tokens: int) -> tuple[int, int]:
    """The smallest capacity for this many rows and tokens."""
    return max(rows, _ROWS), max(round_size(tokens) + 1, _TOKENS)


def round_size(tokens: int) -> int:
    """The next multiple of SIZE_STEP."""
    return -(-tokens // SIZE_STEP) * SIZE_STEP


def _capacity(needed: int, now: int) -> int:
    while now < needed:
        now = 2 * now - 1
    return now
