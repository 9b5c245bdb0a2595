"""Prompts that were prefilled already: the same prompt under other weights is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from emorl_core.cache.kv import Memory


class PrefillCache:
    """Memories by the model's `prefill_key`, the least recently used evicted first, bounded by bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Hashable, Memory] = OrderedDict()

    def get(self, key: Hashable) -> Memory | None:
        memory = self._entries.get(key)
        if memory is None:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return memory

    def put(self, key: Hashable, memory: Memory) -> None:
        """Keep it, unless it is larger than the whole bound."""
        if memory.nbytes > self.max_bytes:
            return
        self.discard(key)
        self._entries[key] = memory
        self.nbytes += memory.nbytes
        while self.nbytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def discard(self, key: Hashable) -> None:
        memory = self._entries.pop(key, None)
        if memory is not None:
            self.nbytes -= memory.nbytes

    def clear(self) -> None:
        """Forget everything; needed when the adapters' parameters change."""
        self._entries.clear()
        self.nbytes = 0
