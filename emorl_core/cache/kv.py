"""The key-value cache of running lane rows: one store for a decoder-only model, two for an encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from emorl_core.cache.store import Store, least

# An empty cache on a CPU keeps up to this many bytes for the next rows; beyond that it is freed. Capacity is rows times
# tokens, so one batch of many rows and one long sequence would otherwise multiply. On a GPU nothing is freed, since
# CUDA graphs hold the addresses.
_KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """What prefill leaves for one lane: keys and values [2, L, K, S, head_size] of its prompt. Immutable, so it can be
    cached and given to any number of lane rows."""

    kv: Tensor

    @property
    def length(self) -> int:
        """S."""
        return self.kv.shape[3]

    @property
    def nbytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()


class KVCache:
    """The keys and values of running lane rows. Each row has a place in every store.

    `own` is for self-attention and grows by a token a step. `cross`, if there is one, is for cross-attention and never
    changes. A prompt's memory is stored in `cross`, or without one in `own`, so that a row of a decoder-only model
    starts with its prompt.
    """

    def __init__(
        self, own: Store, cross: Store | None = None, *, rows_for: Callable[[int], int] = lambda rows: rows
    ) -> None:
        """rows_for: number of lane rows -> rows that a step uses for them, spare ones included."""
        self.own, self.cross = own, cross
        self._rows_for = rows_for

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self.own,) if self.cross is None else (self.own, self.cross)

    @property
    def count(self) -> int:
        """M: lane rows in use, at places 0 .. M-1."""
        return self.own.count

    @property
    def lengths(self) -> list[int]:
        """Tokens stored for self-attention, per row."""
        return self.own.lengths

    @property
    def nbytes(self) -> int:
        """Bytes held, capacity included."""
        return sum(store.nbytes for store in self.stores)

    def bytes_of(self, rows: int, prompt: int, reply: int) -> int:
        """The most bytes that this many lane rows take, with prompts and replies of up to this many tokens."""
        sizes = zip(self.stores, self._tokens(prompt, reply), strict=True)
        return sum(store.bytes_of(self._rows_for(rows), tokens) for store, tokens in sizes)

    def bound(self, rows: int, prompt: int, reply: int, most_bytes: int) -> None:
        """Set bounds: from now on there are no more lane rows than these, whose `bytes_of` is within `most_bytes`.
        Frees capacity beyond them."""
        total = 0
        for store, tokens in zip(self.stores, self._tokens(prompt, reply), strict=True):
            store.most = least(self._rows_for(rows), tokens)
            total += max(store.nbytes, store.bytes_of(self._rows_for(rows), tokens))
        if total > most_bytes:
            for store in self.stores:
                store.shrink()

    def _tokens(self, prompt: int, reply: int) -> tuple[int, ...]:
        """The most tokens that each store holds per row."""
        return (prompt + reply,) if self.cross is None else (reply, prompt)

    def clear(self) -> None:
        """Drop all rows and free their memory."""
        for store in self.stores:
            store.clear()

    def insert(self, memory: Memory | None) -> int:
        """Add a lane row with this memory, or with none; returns its place."""
        kv = None if memory is None else memory.kv
        if self.cross is not None:
            self.cross.add(kv)
            return self.own.add()
        return self.own.add(kv)

    def memory(self, place: int, first: int, last: int) -> Memory:
        """A copy of tokens first .. last - 1 of row `place`, as prefill would have computed them."""
        return Memory((self.own if self.cross is None else self.cross).row(place, first, last))

    def fork(self, source: int) -> int:
        """Add a copy of row `source`, tokens included; returns its place."""
        if self.cross is not None:
            self.cross.fork(source)
        return self.own.fork(source)

    def remove(self, place: int, *, wipe: bool = False) -> int | None:
        """Take row `place` out. Returns the old place of the row that moved into it, or None when none had to move.

        `wipe`: its values may not be finite and are overwritten (see `Store.remove`).
        """
        last = self.count - 1
        for store in self.stores:
            store.remove(place, wipe=wipe)
        self.shrink_if_empty(_KEPT_BYTES)
        return None if place == last else last

    def shrink_if_empty(self, kept_bytes: int = 0) -> None:
        """If there are no rows, free the cache when it holds more than this."""
        if not self.count and self.own.device.type == "cpu" and self.nbytes > kept_bytes:
            self.clear()

    def take(self, places: Sequence[int]) -> KVCache:
        """A separate cache with copies of these rows, to feed them alone."""
        other = KVCache(self.own.empty_like(), None if self.cross is None else self.cross.empty_like())
        for mine, theirs in zip(self.stores, other.stores, strict=True):
            for place in places:
                theirs.add(mine.row(place))
        return other

    def give_back(self, places: Sequence[int], other: KVCache) -> None:
        """Copy the tokens that `take`n rows have gained since into their places."""
        for row, place in enumerate(places):
            self.own.extend(place, other.own, row)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in every row."""
        self.own.reserve(tokens)

    def reserve_each(self, counts: Sequence[int]) -> None:
        """Make room for this many more tokens in each row."""
        self.own.reserve_each(counts)

    def reserve_rows(self, rows: int) -> None:
        """Make room for `rows` lane rows in all (see `Store.reserve_rows`)."""
        for store in self.stores:
            store.reserve_rows(rows)

    def advance(self, tokens: int) -> None:
        """All rows have gained `tokens` tokens."""
        self.own.advance(tokens)

    def advance_each(self, counts: Sequence[int]) -> None:
        """Each row has gained this many tokens."""
        self.own.advance_each(counts)

    def shorten(self, place: int, tokens: int, *, wipe: bool = False) -> None:
        """Row `place` forgets its last tokens. `wipe`: they may not be finite (see `Store.remove`)."""
        self.own.shorten(place, tokens, wipe=wipe)
