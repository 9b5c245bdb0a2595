"""Hidden states of whole replies under autograd, for training a decoder-only model.

A prompt runs once for all its replies. If no adapter acts on it (activated LoRA, or the base's lane), it runs without
gradients, and once for all lanes. The replies to a prompt are packed into one row, so that short ones are not padded to
the length of long ones.

Letters: G groups, M replies, T reply tokens, U tokens per row, D hidden.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal.attention import Layers, Pass, RepliesPass
from emorl_core.models.causal.reading import Reading
from emorl_core.models.family import Facts, Group

KeptPrompts = dict[Hashable, Layers]  # prefix -> keys and values by layer [K, P, d]
_PADDING = -1  # the segment of tokens that belong to no reply


class Readable(Protocol):
    """The parts of a `CausalModel` that this file uses."""

    @property
    def facts(self) -> Facts: ...

    @property
    def adapters(self) -> tuple[str, ...]: ...

    def reading_beside(self, lane: Lane) -> Reading: ...

    def whole(self, readings: Sequence[Reading]) -> Layers: ...

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor: ...

    def refuse_beyond(self, tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Row:
    """One group: the tokens to feed, the arguments of `RepliesPass` for each, and for each reply the positions whose
    hidden states predict its tokens."""

    ids: list[int]
    segments: list[int]
    at: list[int]
    choosing: list[list[int]]

    @classmethod
    def of(cls, first: Sequence[int], replies: Sequence[Sequence[int]]) -> _Row:
        row = cls([*first], [0] * len(first), [*range(len(first))], [])
        for number, reply in enumerate(replies, start=1):
            fed, begin = reply[:-1], len(row.ids)
            row.choosing.append([len(first) - 1, *range(begin, begin + len(fed))][: len(reply)])
            row.ids.extend(fed)
            row.segments.extend([number] * len(fed))
            row.at.extend(range(len(first), len(first) + len(fed)))
        return row


def reply_hidden(model: Readable, groups: Sequence[Group], kept: KeptPrompts) -> tuple[Tensor, Tensor]:
    """The last hidden states that predict each reply token, [M, T, D], and the mask [M, T] of real tokens.

    Gradients reach the adapters, also through the prompt if they act on it. Hidden states on padding are meaningless.
    kept: prompts that the base alone has read before; those read now are added.
    """
    device = model.facts.device
    readings = [model.reading_beside(group.lane) for group in groups]
    model.refuse_beyond(max(len(g.lane.prompt_ids) + len(reply) - 1 for g in groups for reply in g.replies))
    rows = [_Row.of(reading.first, group.replies) for reading, group in zip(readings, groups, strict=True)]
    ids = _padded([row.ids for row in rows], 0, device)  # [G, U]
    width = ids.shape[1]
    seen = RepliesPass(
        _prompts(model, readings, kept),
        torch.tensor([len(reading.prefix) for reading in readings], device=device),
        _padded([row.segments for row in rows], _PADDING, device),
        _padded([row.at for row in rows], 0, device),
        model.facts.dtype,
    )
    lanes = LaneIndex.of([reading.acting for reading in readings], len(model.adapters), device)
    hidden = model.run(ids, seen.positions, lanes.repeat(width), seen)  # [G, U, D]
    places = [[i * width + place for place in own] for i, row in enumerate(rows) for own in row.choosing]
    longest = max(1, *(len(own) for own in places))
    found = hidden.flatten(0, 1)[_padded(places, 0, device, least=longest)]
    sizes = torch.tensor([len(own) for own in places], device=device)
    return found, torch.arange(longest, device=device) < sizes.unsqueeze(1)


def _padded(rows: Sequence[Sequence[int]], filling: int, device: torch.device, *, least: int = 0) -> Tensor:
    """[rows, length of the longest, at least `least`]"""
    longest = max(least, *(len(row) for row in rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows], device=device)


def _prompts(model: Readable, readings: Sequence[Reading], kept: KeptPrompts) -> Layers:
    """Keys and values of every group's prompt, [G, K, P, d] by layer; each distinct prompt is computed once."""
    distinct = {(reading.prefix, reading.spans): reading for reading in readings}
    untouched = [reading for reading in distinct.values() if reading.untouched and reading.prefix not in kept]
    adapted = [reading for reading in distinct.values() if not reading.untouched]
    if untouched:
        with torch.no_grad():
            kept.update(zip((reading.prefix for reading in untouched), _each(model, untouched), strict=True))
    own = dict(zip(((reading.prefix, reading.spans) for reading in adapted), _each(model, adapted), strict=True))
    found = [kept[key[0]] if reading.untouched else own[key] for key, reading in distinct.items()]
    number = {key: i for i, key in enumerate(distinct)}
    rows = torch.tensor([number[reading.prefix, reading.spans] for reading in readings], device=model.facts.device)
    return [
        (_joined([k for k, _ in layer])[rows], _joined([v for _, v in layer])[rows])
        for layer in zip(*found, strict=True)
    ]


def _each(model: Readable, readings: Sequence[Reading]) -> list[Layers]:
    """Keys and values of each prefix, unpadded, [K, P, d] by layer."""
    if not readings:
        return []
    layers = model.whole(readings)
    return [
        [(keys[i, :, : len(reading.prefix)], values[i, :, : len(reading.prefix)]) for keys, values in layers]
        for i, reading in enumerate(readings)
    ]


def _joined(prompts: Sequence[Tensor]) -> Tensor:
    """[K, P, d] of several prompts -> [prompts, K, P, d], padded to the longest."""
    longest = max(prompt.shape[1] for prompt in prompts)
    return torch.stack([F.pad(prompt, (0, 0, 0, longest - prompt.shape[1])) for prompt in prompts])
