"""Hidden states of whole replies, under autograd: what training asks of a decoder-only model.

A prompt runs once for all replies to it. Where no adapter acts on it (activated LoRA, or the base's lane) it runs
without gradients, and once for all lanes too.

Letters: G groups, k replies a group, M = G * k, T reply tokens, U tokens of a reply's row, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal.attention import Layers, Pass, RepliesPass
from emorl_core.models.causal.reading import Reading
from emorl_core.models.family import Facts, Group


class Readable(Protocol):
    """The parts of a `CausalModel` that this file uses."""

    @property
    def facts(self) -> Facts: ...

    @property
    def adapters(self) -> tuple[str, ...]: ...

    def reading(self, lane: Lane) -> Reading: ...

    def whole(self, readings: Sequence[Reading]) -> Layers: ...

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor: ...

    def refuse_beyond(self, tokens: int) -> None: ...


def reply_hidden(model: Readable, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """The last hidden state that chooses each reply token: [M, T, D], and the mask [M, T] of real tokens.

    All groups have the same number of replies. Gradients reach the adapters, through the prompt as well where they act
    on it. Hidden states on padding are meaningless.
    """
    device, each = model.facts.device, len(groups[0].replies)
    readings = [model.reading(group.lane) for group in groups]
    sizes = [len(reply) for group in groups for reply in group.replies]
    model.refuse_beyond(max(len(g.lane.prompt_ids) + len(reply) - 1 for g in groups for reply in g.replies))
    longest = max(1, *sizes)
    width = max(len(reading.first) for reading in readings) - 1 + longest  # U
    rows = [
        [*reading.first, *reply[:-1]]
        for group, reading in zip(groups, readings, strict=True)
        for reply in group.replies
    ]
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device).view(len(groups), each * width)
    lengths = torch.tensor([len(reading.prefix) for reading in readings], device=device)
    seen = RepliesPass(_prompts(model, readings), lengths, each, width, model.facts.dtype)
    # A row that is shorter than the widest may have padding beyond the model's last position.
    limit = model.facts.max_positions
    positions = seen.positions if limit is None else seen.positions.clamp(max=limit - 1)
    lanes = LaneIndex.of([reading.acting for reading in readings], len(model.adapters), device)
    hidden = model.run(ids, positions, lanes.repeat(each * width), seen).view(len(rows), width, -1)
    begins = torch.tensor([len(reading.first) - 1 for reading in readings], device=device).repeat_interleave(each)
    places = begins.unsqueeze(1) + torch.arange(longest, device=device)  # [M, T]
    found = hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
    return found, torch.arange(longest, device=device) < torch.tensor(sizes, device=device).unsqueeze(1)


def _prompts(model: Readable, readings: Sequence[Reading]) -> Layers:
    """Keys and values of every group's prompt, [G, K, P, d] by layer, each distinct one computed once."""
    distinct = {(reading.prefix, reading.spans): reading for reading in readings}
    untouched = [reading for reading in distinct.values() if reading.untouched]
    adapted = [reading for reading in distinct.values() if not reading.untouched]
    parts: list[Layers] = []
    if untouched:
        with torch.no_grad():
            parts.append(model.whole(untouched))
    if adapted:
        parts.append(model.whole(adapted))
    place = {(reading.prefix, reading.spans): i for i, reading in enumerate([*untouched, *adapted])}
    rows = torch.tensor([place[reading.prefix, reading.spans] for reading in readings], device=model.facts.device)
    return [
        (_joined([keys for keys, _ in layer])[rows], _joined([values for _, values in layer])[rows])
        for layer in zip(*parts, strict=True)
    ]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """[G, K, P, d] of several batches, one after the other, padded to the longest."""
    longest = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts])
