"""Prompts that were prefilled already: the same prompt under other weights skips the encoder."""

from __future__ import annotations

from collections import OrderedDict

from emorl_core.cache.kv import Memory


class PrefillCache:
    """Memories of prompts by (prompt, lane), least recently used out first, bounded by bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[tuple[tuple[int, ...], int], Memory] = OrderedDict()

    def get(self, prompt: tuple[int, ...], lane: int) -> Memory | None:
        memory = self._entries.get((prompt, lane))
        if memory is None:
            self.misses += 1
            return None
        self._entries.move_to_end((prompt, lane))
        self.hits += 1
        return memory

    def put(self, prompt: tuple[int, ...], lane: int, memory: Memory) -> None:
        if memory.nbytes > self.max_bytes:
            return
        self.discard(prompt, lane)
        self._entries[(prompt, lane)] = memory
        self.nbytes += memory.nbytes
        while self.nbytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def discard(self, prompt: tuple[int, ...], lane: int) -> None:
        memory = self._entries.pop((prompt, lane), None)
        if memory is not None:
            self.nbytes -= memory.nbytes

    def clear(self) -> None:
        """Forget everything; needed when the adapters' parameters change."""
        self._entries.clear()
        self.nbytes = 0
