"""Prefill of a decoder-only model: whole prompts and pieces that continue earlier ones, side by side without padding.

Letters: M rows, T new tokens, P tokens before them, L layers, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol, cast

import torch
from torch import Tensor

from emorl_core.cache.kv import Memory
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients
from emorl_core.models.causal.attention import ContinuedPass, Layers, PackedPass, Pass, Run, WholePass
from emorl_core.models.family import Facts, Piece
from emorl_core.models.packing import batches

# Limits for one pass, of earlier tokens and of new ones: large enough for efficient products, small enough to bound
# activations.
_PAST_TOKENS = 16384
_NEW_TOKENS = 4096

_Label = tuple[int, Coefficients]  # a token, and the coefficients that act on it


class Readable(Protocol):
    """The parts of a `CausalModel` that this file uses."""

    @property
    def facts(self) -> Facts: ...

    def by_token(self, points: Sequence[Coefficients]) -> LaneIndex: ...

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor: ...

    def refuse_beyond(self, tokens: int) -> None: ...


@torch.inference_mode()
def prefill(model: Readable, pieces: Sequence[Piece]) -> list[Memory]:
    """Keys and values of each piece's tokens; no piece may be empty."""
    memories: dict[int, Memory] = {}
    for batch in batches([_size(piece) for piece in pieces], (_PAST_TOKENS, _NEW_TOKENS)):
        memories.update(zip(batch, _read(model, [pieces[i] for i in batch]), strict=True))
    return [memories[i] for i in range(len(pieces))]


def _size(piece: Piece) -> tuple[int, int]:
    """Earlier tokens and new ones."""
    return piece.start, piece.stop - piece.start


def _read(model: Readable, pieces: Sequence[Piece]) -> list[Memory]:
    """In one pass. Pieces of equal size are adjacent, and attend together."""
    device = model.facts.device
    model.refuse_beyond(max(piece.stop for piece in pieces))
    labels = [
        label for piece in pieces for label in cast("Sequence[_Label]", piece.passage.labels)[piece.start : piece.stop]
    ]
    tokens = torch.tensor([[token for token, _ in labels]], device=device)
    positions = torch.cat([torch.arange(piece.start, piece.stop, device=device) for piece in pieces])
    runs = [_run(list(alike), model.facts) for _, alike in groupby(pieces, key=_size)]
    model.run(tokens, positions.unsqueeze(0), model.by_token([point for _, point in labels]), PackedPass(runs))
    memories: list[Memory] = []
    for run in runs:
        kv = torch.stack([torch.stack(layer) for layer in run.seen.kept], dim=1)  # [2, L, M, K, T, d]
        memories += [Memory(kv[:, :, row].contiguous()) for row in range(run.rows)]
    return memories


def _run(pieces: Sequence[Piece], facts: Facts) -> Run:
    """Pieces of equal size."""
    past, new = _size(pieces[0])
    if not past:
        return Run(len(pieces), new, WholePass(new, dtype=facts.dtype, device=facts.device))
    lengths = torch.full((len(pieces),), past, device=facts.device)
    return Run(len(pieces), new, ContinuedPass(_pasts(pieces), lengths, new, facts.dtype))


def _pasts(pieces: Sequence[Piece]) -> Layers:
    """[M, K, P, d] by layer; not copied for a single row."""
    kvs = [piece.past.kv for piece in pieces if piece.past is not None]
    both = kvs[0].unsqueeze(2) if len(kvs) == 1 else torch.stack(kvs, dim=2)  # [2, L, M, K, P, d]
    return [(both[0, i], both[1, i]) for i in range(both.shape[1])]
