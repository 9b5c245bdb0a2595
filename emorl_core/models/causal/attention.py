"""The attention function called by transformers' modelling code, over keys and values with a length per row.

One `Pass` object goes with every forward pass as a keyword argument. It provides a layer's keys and values and the mask
of those that a query may attend to; masks are built once per pass, not per layer.

Letters: M rows, H heads, K key-value heads, G = H / K queries per key-value head, T new tokens per row, S keys, d head
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface

from emorl_core.cache.store import Store, round_size

NAME = "emorl_lanes"  # not registered for masks, so the library builds none
KEYWORD = "lane_pass"  # the library passes unknown keyword arguments on to the attention function
# Rows of a cache are read in at most this many runs, each as long as its own longest row; every run is a separate
# attention call in every layer. Rows of up to `_SHORT` + 1 keys count as equally long.
_MOST_RUNS = 4
_SHORT = 255


Layers = list[tuple[Tensor, Tensor]]  # by layer, keys and values [M, K, S, d]


class RowsPass(Protocol):
    """One forward pass over rows with equally many new tokens, as an attention layer sees it."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values [M, K, T, d] of a layer -> all that its queries may attend to, [M, K, S, d]."""

    def mask(self, window: int | None, *, explicit: bool) -> Tensor | None:
        """[M or 1, 1, T, S] additive mask for a layer with this sliding window. A purely causal mask may be None,
        unless `explicit`."""


class WholePass:
    """Whole sequences, padded on the right; with a causal mask no real token attends to padding.

    Stores every layer's keys and values.
    """

    def __init__(self, tokens: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.kept: Layers = []
        self._positions = torch.arange(tokens, device=device)
        self._masks = Masks(dtype)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer != len(self.kept):
            raise ValueError(f"layer {layer} attends after layer {len(self.kept) - 1}; allowed: once each, in order")
        self.kept.append((keys, values))
        return keys, values

    def mask(self, window: int | None, *, explicit: bool) -> Tensor | None:
        if not explicit and (window is None or window >= len(self._positions)):
            return None
        distance = self._positions.unsqueeze(1) - self._positions
        return self._masks.within(distance[None, None], window)


class CachedPass:
    """New tokens for the rows of a cache, at each row's own positions."""

    def __init__(
        self, cache: Store, positions: Tensor, sizes: Sequence[int], dtype: torch.dtype, places: Tensor | None = None
    ) -> None:
        """positions: [M, T] of the new tokens; sizes: number of keys for each row's last token; places: [M] rows of the
        cache, whose keys are then copied; None: row 0, 1, ..."""
        self._cache, self._positions, self._places = cache, positions, places
        sizes = [round_size(size) for size in sizes]
        self._total = max(sizes)
        self.runs = _runs(sizes)
        keys = torch.arange(self._total, device=positions.device)
        self._distance = (positions.unsqueeze(2) - keys).unsqueeze(1)  # [M, 1, T, S]
        self._masks = Masks(dtype)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._cache.write(layer, keys.transpose(1, 2), values.transpose(1, 2), self._positions, self._places)
        return self._cache.read(layer, self._total, self._places)

    def mask(self, window: int | None, *, explicit: bool) -> Tensor:  # noqa: ARG002
        return self._masks.within(self._distance, window)


def _runs(sizes: Sequence[int]) -> list[tuple[slice, int]]:
    """Runs of adjacent rows of similar size, with the largest size in each, so that short rows do not read as many keys
    as the longest row of the batch. Empty if that would save little."""
    runs: list[tuple[slice, int]] = []
    for row, size in enumerate(sizes):
        if runs and _class(size) == _class(runs[-1][1]):
            runs[-1] = slice(runs[-1][0].start, row + 1), max(runs[-1][1], size)
        else:
            runs.append((slice(row, row + 1), size))
    read = sum((rows.stop - rows.start) * size for rows, size in runs)
    return runs if 1 < len(runs) <= _MOST_RUNS and 2 * read <= len(sizes) * max(sizes) else []


def _class(size: int) -> int:
    return max(size - 1, _SHORT).bit_length()


class ContinuedPass:
    """New tokens after keys and values that each row already has. Stores every layer's new ones."""

    def __init__(self, pasts: Layers, lengths: Tensor, tokens: int, dtype: torch.dtype) -> None:
        """pasts: [M, K, P, d] padded on the right; lengths: [M] of those; tokens: new tokens per row."""
        at = torch.arange(tokens, device=lengths.device).expand(len(lengths), -1)
        self._seen = RepliesPass(pasts, lengths, torch.zeros_like(at), at, dtype)
        self.positions = self._seen.positions  # [M, T]
        self.kept: Layers = []

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept.append((keys, values))
        return self._seen.extend(layer, keys, values)

    def mask(self, window: int | None, *, explicit: bool) -> Tensor:
        return self._seen.mask(window, explicit=explicit)


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of equal size in a `PackedPass`."""

    rows: int
    tokens: int  # new ones per row
    seen: WholePass | ContinuedPass


class PackedPass:
    """Rows of different sizes without padding, as one long row: all tokens of the first run, row after row, then those
    of the next. Each run attends by itself."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs

    def split(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, RowsPass]]:
        """[1, heads, tokens of all, d] each -> for each run [M, heads, T, d] each, and its pass."""
        start = 0
        for run in self._runs:
            end = start + run.rows * run.tokens
            q, k, v = (
                part[0, :, start:end].unflatten(1, (run.rows, run.tokens)).transpose(0, 1)
                for part in (query, key, value)
            )
            yield q, k, v, run.seen
            start = end


class RepliesPass:
    """Rows with several replies to a prompt: the common beginning of a row's replies, then one reply after the other.

    Letters: P prompt tokens, T new tokens per row.
    """

    def __init__(self, prompts: Layers, lengths: Tensor, segments: Tensor, at: Tensor, dtype: torch.dtype) -> None:
        """prompts: [M, K, P, d] padded on the right; lengths: [M] of the prompts.

        segments: [M, T] 0 for the common part, a different number for each reply; a token attends to the common part
        and its own reply. at: [M, T] offset of each token from the end of its prompt.
        """
        self._prompts = prompts
        self.positions = lengths.unsqueeze(1) + at  # [M, T]
        prompt = torch.arange(prompts[0][0].shape[2], device=lengths.device)
        to_prompt = self.positions.unsqueeze(2) - prompt  # [M, T, P]
        to_prompt = to_prompt.masked_fill((prompt >= lengths.unsqueeze(1)).unsqueeze(1), -1)
        seen = (segments.unsqueeze(1) == 0) | (segments.unsqueeze(1) == segments.unsqueeze(2))
        among = (at.unsqueeze(2) - at.unsqueeze(1)).masked_fill(~seen, -1)  # [M, T, T]
        self._distance = torch.cat([to_prompt, among], dim=2).unsqueeze(1)
        self._masks = Masks(dtype)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        own_keys, own_values = self._prompts[layer]
        return torch.cat([own_keys, keys], dim=2), torch.cat([own_values, values], dim=2)

    def mask(self, window: int | None, *, explicit: bool) -> Tensor:  # noqa: ARG002
        return self._masks.within(self._distance, window)


Pass = RowsPass | PackedPass


class Masks:
    """Additive masks by window, built on first use."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._made: dict[int | None, Tensor] = {}

    def within(self, distance: Tensor, window: int | None) -> Tensor:
        """distance [..., T, S] from a query back to a key -> 0 where it is 0 .. window - 1, else minus infinity."""
        if window not in self._made:
            hidden = distance < 0
            if window is not None:
                hidden |= distance >= window
            mask = torch.zeros(distance.shape, dtype=self._dtype, device=distance.device)
            self._made[window] = mask.masked_fill_(hidden, float("-inf"))
        return self._made[window]


def lane_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lane_pass: Pass | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """query [M, H, T, d], key and value [M, K, T, d] -> [M, T, H, d], in the library's calling convention.

    Attention dropout is never applied: only adapters are trained, on the base as served.
    """
    if lane_pass is None or attention_mask is not None or is_causal is False:
        raise ValueError(f"{type(module).__name__} brings a mask of its own or attends both ways")
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = attend(
        layer, query, key, value, lane_pass, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux
    )
    return mixed, None


def attend(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Pass,
    *,
    scale: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [M, H, T, d], new keys and values [M, K, T, d] of a layer -> [M, T, H, d]; sinks: [H]."""
    if isinstance(seen, PackedPass):
        each = [
            attend(layer, *own, scale=scale, window=window, softcap=softcap, sinks=sinks).flatten(0, 1)
            for own in seen.split(query, key, value)
        ]
        return torch.cat(each).unsqueeze(0)
    keys, values = seen.extend(layer, key, value)
    explicit = softcap is not None or sinks is not None
    mask = seen.mask(window, explicit=explicit)
    rows, heads, new, _ = query.shape
    shared = keys.shape[1]
    groups = heads // shared
    if mask is None:
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
        mixed = F.scaled_dot_product_attention(query, keys, values, is_causal=new > 1, scale=scale)
        return mixed.transpose(1, 2)
    # The queries of one group are laid out like consecutive tokens, so that keys are never repeated.
    packed = query.reshape(rows, shared, groups * new, -1)
    if groups > 1 and new > 1:
        mask = mask.repeat(1, 1, groups, 1)
    columns = _as_columns(sinks, shared, groups, new)

    def mix(some: slice, size: int, mask: Tensor) -> Tensor:
        parts = packed[some], keys[some, :, :size], values[some, :, :size], mask[..., :size]
        if explicit:
            return _explicit(*parts, scale, softcap, columns)
        q, k, v, own = parts
        return F.scaled_dot_product_attention(q, k, v, attn_mask=own, scale=scale)

    runs = seen.runs if isinstance(seen, CachedPass) else []
    if runs:
        mixed = torch.cat([mix(some, size, mask[some]) for some, size in runs])
    else:
        mixed = mix(slice(None), keys.shape[2], mask)
    return mixed.reshape(rows, heads, new, -1).transpose(1, 2)


def _explicit(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores (Gemma 2) or an attention sink in the softmax (gpt-oss)."""
    scores = torch.matmul(query, keys.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(len(scores), -1, -1, -1)], dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.matmul(shares if sinks is None else shares[..., :-1], values)


def _as_columns(sinks: Tensor | None, shared: int, groups: int, new: int) -> Tensor | None:
    """[H] -> [1, K, G * T, 1]."""
    if sinks is None:
        return None
    by_group = sinks.view(1, shared, groups, 1, 1)
    return by_group.expand(1, shared, groups, new, 1).reshape(1, shared, groups * new, 1)


AttentionInterface.register(NAME, lane_attention)
