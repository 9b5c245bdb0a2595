"""Hidden states of whole replies, under autograd: what training asks of a decoder-only model.

A prompt runs once for all replies to it. Where no adapter acts on it (activated LoRA, or the base's lane) it runs without
gradients, and once for all lanes too. Letters: G groups, k replies a group, M = G * k, T reply tokens, U tokens of a
reply's row, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from emorl_core.lanes import BASE_LANE, LaneIndex
from emorl_core.models.causal.attention import RepliesPass
from emorl_core.models.causal.model import CausalModel

Layers = list[tuple[Tensor, Tensor]]  # keys and values by layer


class Group(Protocol):
    """k replies to one prompt in one lane."""

    @property
    def source(self) -> tuple[int, ...]: ...

    @property
    def lane(self) -> int: ...

    @property
    def replies(self) -> tuple[tuple[int, ...], ...]: ...


def reply_hidden(model: CausalModel, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """The last hidden state that chooses each reply token: [M, T, D], and the mask [M, T] of real tokens.

    All groups have the same number of replies. Gradients reach the adapters, through the prompt as well where they act
    on it. Hidden states on padding are meaningless.
    """
    device, replies = model.device, len(groups[0].replies)
    keys = [model.prefill_key(group.source, group.lane) for group in groups]
    first = [model.first_tokens(group.source, group.lane) for group in groups]
    longest = max(1, max(len(reply) for group in groups for reply in group.replies))
    width = max(len(tokens) for tokens in first) - 1 + longest  # U
    rows = [
        [*tokens, *reply[:-1], *[0] * (width - len(tokens) - max(len(reply) - 1, 0))]
        for group, tokens in zip(groups, first, strict=True)
        for reply in group.replies
    ]
    ids = torch.tensor(rows, device=device).view(len(groups), replies * width)
    lengths = torch.tensor([len(prefix) for prefix, _ in keys], device=device)
    model.refuse_beyond(max(len(group.source) + len(reply) - 1 for group in groups for reply in group.replies))
    seen = RepliesPass(_prompts(model, keys), lengths, replies, width, model.dtype)
    lanes = torch.tensor([model.running_lane(group.source, group.lane) for group in groups], device=device)
    positions = seen.positions if model.max_positions is None else seen.positions.clamp(max=model.max_positions - 1)
    hidden = model.run(ids, positions, LaneIndex(lanes, len(model.adapters)), seen)  # clamped: padding alone
    hidden = hidden.view(len(rows), width, -1)
    starts = torch.tensor([len(tokens) - 1 for tokens in first], device=device).repeat_interleave(replies)
    places = starts.unsqueeze(1) + torch.arange(longest, device=device)  # [M, T]
    found = hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
    sizes = torch.tensor([len(reply) for group in groups for reply in group.replies], device=device)
    return found, torch.arange(longest, device=device) < sizes.unsqueeze(1)


def _prompts(model: CausalModel, keys: Sequence[tuple[tuple[int, ...], int]]) -> Layers:
    """Keys and values of every group's prompt, [G, K, P, d] by layer, each distinct prompt computed once."""
    distinct = list(dict.fromkeys(keys))
    frozen = [key for key in distinct if key[1] == BASE_LANE]
    adapted = [key for key in distinct if key[1] != BASE_LANE]
    parts: list[Layers] = []
    if frozen:
        with torch.no_grad():
            parts.append(model.whole([prefix for prefix, _ in frozen], [lane for _, lane in frozen]))
    if adapted:
        parts.append(model.whole([prefix for prefix, _ in adapted], [lane for _, lane in adapted]))
    place = {key: i for i, key in enumerate([*frozen, *adapted])}
    rows = torch.tensor([place[key] for key in keys], device=model.device)
    return [
        (_joined([part[layer][0] for part in parts])[rows], _joined([part[layer][1] for part in parts])[rows])
        for layer in range(len(model.shapes))
    ]


def _joined(parts: list[Tensor]) -> Tensor:
    """[G, K, P, d] of several batches, one after the other, padded to the longest."""
    longest = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts])
