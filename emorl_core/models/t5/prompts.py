"""Prompts through T5's encoder, to the keys and values that the decoder's cross-attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor, nn

from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.family import Facts
from emorl_core.models.t5.blocks import T5Block
from emorl_core.models.t5.config import T5Config
from emorl_core.models.t5.parts import only
from emorl_core.models.t5.positions import EncoderPositions, padding_mask


class Encoder(Protocol):
    """What is needed of a T5 here."""

    config: T5Config
    embedding: FrozenMatrix
    encoder: nn.ModuleList
    encoder_norm: Tensor
    encoder_positions: EncoderPositions
    encoding: tuple[bool, ...]  # which adapters change its output
    cross_kv: LaneLinear

    @property
    def facts(self) -> Facts: ...

    def index(self, lanes: Sequence[Lane]) -> LaneIndex: ...

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]: ...

    def norm(self, x: Tensor, weight: Tensor) -> Tensor: ...


def read(model: Encoder, lanes: Sequence[Lane]) -> Sequence[Tensor]:
    """Cross-attention keys and values of all layers [2, L, H, S, d_kv] for each lane's prompt, read side by side."""
    # Lanes whose encoder no adapter touches share one pass through it.
    encoded = [Lane(only(lane.coefficients, model.encoding), lane.prompt_ids) for lane in lanes]
    distinct = list(dict.fromkeys(encoded))
    states = _packed(model, distinct)
    if len(distinct) < len(lanes):
        own = dict(zip(distinct, states.split([len(lane.prompt_ids) for lane in distinct]), strict=True))
        states = torch.cat([own[lane] for lane in encoded])
    return _cross(model, states, _by_token(model, lanes)).split([len(lane.prompt_ids) for lane in lanes], dim=3)


def read_padded(model: Encoder, lanes: Sequence[Lane]) -> Tensor:
    """As `read`, padded: [2, L, E, H, S, d_kv]. For training, where dropout draws by place, and a run that was
    interrupted must go on to the same weights."""
    prompts = [lane.prompt_ids for lane in lanes]
    ids = model.padded(prompts)[0]
    rows, size = ids.shape
    mask = model.encoder_positions.mask(size)
    padding = padding_mask([len(prompt) for prompt in prompts], size, mask.dtype, mask.device)
    index = model.index(lanes).repeat(size)
    states = encode(model, ids.flatten(), [(rows, mask if padding is None else mask + padding)], index)
    return _cross(model, states, index).unflatten(3, (rows, size)).permute(0, 1, 3, 2, 4, 5)


def _packed(model: Encoder, lanes: Sequence[Lane]) -> Tensor:
    """The encoder's states of prompts side by side: [tokens of all, D]."""
    lengths = [len(lane.prompt_ids) for lane in lanes]
    mask = model.encoder_positions.mask(max(lengths))
    # Prompts of equal length that are adjacent attend in one call.
    alike = ((size, len(list(run))) for size, run in groupby(lengths))
    runs = [(rows, mask[..., :size, :size].contiguous()) for size, rows in alike]
    ids = torch.tensor([token for lane in lanes for token in lane.prompt_ids], device=model.facts.device)
    return encode(model, ids, runs, _by_token(model, lanes))


def encode(model: Encoder, ids: Tensor, runs: Sequence[tuple[int, Tensor]], lanes: LaneIndex) -> Tensor:
    """ids: [tokens of all]; runs as in `T5Block.attend_runs`; lanes: of the tokens. Returns [tokens of all, D]."""
    x = model.embedding.rows(ids)
    for block in model.encoder:
        assert isinstance(block, T5Block)
        x = block.attend_runs(x, lanes, runs)
        x = block.feed_forward(x, lanes)
    return model.norm(x, model.encoder_norm)


def _cross(model: Encoder, states: Tensor, lanes: LaneIndex) -> Tensor:
    """[tokens of all, D] -> cross-attention keys and values of all layers [2, L, H, tokens of all, d_kv]."""
    kv = model.cross_kv(states, lanes)  # [2L, tokens of all, inner]
    return kv.unflatten(-1, (model.config.num_heads, model.config.d_kv)).unflatten(0, (-1, 2)).permute(1, 0, 3, 2, 4)


def _by_token(model: Encoder, lanes: Sequence[Lane]) -> LaneIndex:
    """The index of all tokens of the lanes' prompts, with spare rows."""
    lengths = torch.tensor([len(lane.prompt_ids) for lane in lanes], device=model.facts.device)
    return LaneIndex(model.index(lanes).coefficients.repeat_interleave(lengths, dim=0)).with_spare()
