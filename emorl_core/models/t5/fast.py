"""The interface of T5's fast steps, compiled or captured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from emorl_core.cache.kv import KVCache
from emorl_core.lanes.index import LaneIndex


class FastStep(Protocol):
    """`T5.step` for one new token per row, compiled or captured."""

    def __call__(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """tokens [M, 1] -> last hidden states [M, D], valid until the next call."""

    def ragged(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor | None:
        """As `T5.ragged_step`; None: not supported."""

    def head_row(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """The head's product for one row, weight [V, D] and hidden [1, D] -> [1, V] float32; None: not supported."""
