"""Prefill of a decoder-only model, for whole prompts or for pieces that continue earlier ones.

Letters: M rows, T new tokens, P tokens before them, L layers, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.cache.kv import Memory
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients
from emorl_core.models.causal.attention import ContinuedPass, Layers, Pass, WholePass
from emorl_core.models.family import Facts, Piece

# Limits for one padded batch, of new tokens and of earlier ones: large enough for efficient products, small enough to
# bound activations.
_NEW_TOKENS = 4096
_PAST_TOKENS = 16384

_Label = tuple[int, Coefficients]  # a token, and the coefficients that act on it


class Readable(Protocol):
    """The parts of a `CausalModel` that this file uses."""

    @property
    def facts(self) -> Facts: ...

    def by_token(self, rows: Sequence[Sequence[Coefficients]], longest: int) -> LaneIndex: ...

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor: ...

    def refuse_beyond(self, tokens: int) -> None: ...


@torch.inference_mode()
def prefill(model: Readable, pieces: Sequence[Piece]) -> list[Memory]:
    """Keys and values of each piece's tokens; no piece may be empty."""
    memories: dict[int, Memory] = {}
    fresh = [i for i, piece in enumerate(pieces) if piece.past is None]
    for numbers in (fresh, [i for i, piece in enumerate(pieces) if piece.past is not None]):
        for batch in _batches(pieces, numbers):
            some = [pieces[i] for i in batch]
            kv = torch.stack([torch.stack(layer) for layer in _read(model, some)], dim=1)  # [2, L, M, K, T, d]
            for row, (i, piece) in enumerate(zip(batch, some, strict=True)):
                memories[i] = Memory(kv[:, :, row, :, : piece.stop - piece.start].clone())
    return [memories[i] for i in range(len(pieces))]


def _batches(pieces: Sequence[Piece], numbers: Sequence[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    new = past = 0
    for i in numbers:
        piece = pieces[i]
        new, past = max(new, piece.stop - piece.start), max(past, piece.start)
        rows = len(batches[-1]) + 1 if batches else 1
        if not batches or new * rows > _NEW_TOKENS or past * rows > _PAST_TOKENS:
            batches.append([])
            new, past = piece.stop - piece.start, piece.start
        batches[-1].append(i)
    return batches


def _read(model: Readable, pieces: Sequence[Piece]) -> Layers:
    """[M, K, T, d] by layer, padded on the right. Either all pieces begin their passages, or none does."""
    device, dtype = model.facts.device, model.facts.dtype
    rows = [cast("Sequence[_Label]", piece.passage.labels[piece.start : piece.stop]) for piece in pieces]
    longest = max(map(len, rows))
    model.refuse_beyond(max(piece.stop for piece in pieces))
    tokens = torch.tensor([[*(token for token, _ in row), *[0] * (longest - len(row))] for row in rows], device=device)
    lanes = model.by_token([[point for _, point in row] for row in rows], longest)
    seen: WholePass | ContinuedPass
    if pieces[0].past is None:
        seen = WholePass(longest, dtype=dtype, device=device)
        model.run(tokens, torch.arange(longest, device=device).expand(len(rows), -1), lanes, seen)
    else:
        lengths = torch.tensor([piece.start for piece in pieces], device=device)
        seen = ContinuedPass(_pasts(pieces), lengths, longest, dtype)
        model.run(tokens, seen.positions, lanes, seen)
    return seen.kept


def _pasts(pieces: Sequence[Piece]) -> Layers:
    """[M, K, P, d] by layer, padded on the right; not copied for a single row."""
    kvs = [piece.past.kv for piece in pieces if piece.past is not None]
    if len(kvs) > 1:
        longest = max(kv.shape[3] for kv in kvs)
        kvs = [F.pad(kv, (0, 0, 0, longest - kv.shape[3])) for kv in kvs]
    layers = range(kvs[0].shape[1])
    both = kvs[0].unsqueeze(2) if len(kvs) == 1 else torch.stack(kvs, dim=2)  # [2, L, M, K, P, d]
    return [(both[0, i], both[1, i]) for i in layers]
