"""T5's relative position bias: one per head and bucket of the distance between key and query."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.models.t5.config import T5Config


class EncoderPositions:
    """The encoder's bias, for keys before and after their query."""

    def __init__(self, config: T5Config, bias: Tensor) -> None:
        """bias: [buckets, H]."""
        self._config, self._bias = config, bias

    def mask(self, size: int) -> Tensor:
        """[1, H, S, S] additive: relative position bias."""
        bias = self._bias
        span = torch.arange(size, device=bias.device)
        relative = span[None, :] - span[:, None]
        buckets = position_bucket(relative, True, self._config.buckets, self._config.max_distance)
        return F.embedding(buckets, bias).permute(2, 0, 1).unsqueeze(0).contiguous()


class DecoderPositions:
    """The decoder's bias, for keys at or before their query."""

    def __init__(self, config: T5Config, bias: Tensor) -> None:
        """bias: [buckets, H]."""
        self._config, self._bias = config, bias
        self._by_distance = bias[:0]

    def causal(self, positions: Tensor, total: int) -> Tensor:
        """positions [M, q] of the queries -> [M, H, q, total] additive: bias by distance, -inf on later keys."""
        distance = positions.unsqueeze(-1) - torch.arange(total, device=positions.device)  # [M, q, total]
        bias = F.embedding(distance.clamp(min=0), self.by_distance(total))
        return bias.masked_fill((distance < 0).unsqueeze(-1), float("-inf")).permute(0, 3, 1, 2).contiguous()

    def by_distance(self, total: int) -> Tensor:
        """Bias for keys 0, 1, ... tokens before their query, for `total` distances or more: [>= total, H]."""
        if total > self._by_distance.shape[0]:
            distances = torch.arange(2 * total, device=self._bias.device)
            buckets = position_bucket(-distances, False, self._config.buckets, self._config.max_distance)
            with torch.inference_mode(False):  # it is kept, and later used under autograd
                self._by_distance = F.embedding(buckets.clone(), self._bias)
        return self._by_distance


def padding_mask(lengths: Sequence[int], size: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[E, 1, 1, S] additive, -inf on padding; None if no row is padded."""
    if min(lengths) == size:
        return None
    padding = torch.arange(size, device=device) >= torch.tensor(lengths, device=device).unsqueeze(1)
    return torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill(padding, float("-inf"))[:, None, None, :]


def position_bucket(relative: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Relative position (key - query) -> bucket, as in T5 (Raffel et al. 2020, section 2.1): half of the buckets are
    exact, the other half grow logarithmically up to `max_distance`."""
    offset = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    # float32 like the reference: in another precision the boundary of a bucket would move.
    growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (buckets - exact)
    large = (exact + growth.long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, large)
