"""A decoding step of T5 as one function of tensors, for compiling or capturing as a CUDA graph.

A step has some 80 products of few rows and 500 small operations, which take longer than the products if called one by
one. This is `T5.step` for one token per row, written so that it can be compiled or captured: tensors in, tensors out,
no Python that changes from step to step, no variable sizes except those of its arguments. Letters as in `model.py`; K:
most adapters that a row uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.cache.kv import KVCache
from emorl_core.cache.store import round_size
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.step_linear import StepLinear, StepTensors
from emorl_core.models.t5.model import T5

# (x, used, coefficients, places, positions, bias, source mask, own, cross, parameters) -> hidden
Step = Callable[..., Tensor]


class StepFunction:
    """The function for one model with the adapters attached now: its tensors, and the settings that it is built
    from."""

    def __init__(self, model: T5) -> None:
        self.tensors = StepTensors([], [])
        blocks = [tuple(StepLinear.of(layer, self.tensors) for layer in _linears(block)) for block in model.decoder]
        for block in model.decoder:
            self.tensors.parameters += block.norms  # type: ignore[arg-type]
        self.tensors.parameters.append(model.decoder_norm)
        config = model.config
        self.settings = (blocks, config.num_heads, config.d_kv, config.epsilon, config.gated, model.facts.dtype)
        self.function = step_of(*self.settings)


class StepRows:
    """The arguments that change only when rows are added, removed or moved; for at least `rows` rows.

    Spare rows repeat the first lane row's arguments, at unused places of the cache.
    """

    def __init__(self, lanes: LaneIndex, cache: KVCache, rows: int) -> None:
        """lanes: of the cache's M rows; rows >= M."""
        spare = rows - cache.count
        # [rows, K] each
        self.used, self.coefficients = (torch.cat([own, own[:1].expand(spare, -1)]) for own in lanes.used())
        self.places = torch.arange(rows, device=self.used.device)
        self.source_mask = source_mask(cache, rows)


def source_mask(cache: KVCache, rows: int) -> Tensor:
    """The additive mask of cross-attention, [rows, S]: 0, or -inf beyond a row's prompt."""
    assert cache.cross is not None  # an encoder-decoder's cache
    device = cache.cross.device
    lengths = cache.cross.lengths + cache.cross.lengths[:1] * (rows - cache.count)
    padding = torch.arange(round_size(max(lengths)), device=device) >= torch.tensor(lengths, device=device).unsqueeze(1)
    return torch.zeros(padding.shape, device=device).masked_fill(padding, float("-inf"))


def _linears(block: torch.nn.Module) -> tuple[LaneLinear, ...]:
    return (block.qkv, block.o, block.cross_q, block.cross_o, block.wi, block.wo)  # type: ignore[return-value]


def step_of(
    blocks: Sequence[tuple[StepLinear, ...]],
    heads: int,
    d_kv: int,
    epsilon: float,
    gated: bool,
    dtype: torch.dtype,
    ragged: bool = False,
) -> Step:
    """The function to compile, for one model's shapes. ragged: rows may share places; else row i has place i."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight.float()).to(dtype)

    def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """q [M, H, d_kv], keys and values [M, H, T, d_kv], mask [M, 1 or H, T] -> [M, H * d_kv]."""
        scores = (q.unsqueeze(2) * keys).sum(dim=-1) + mask
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(-1) * values).sum(dim=2).flatten(1).to(dtype)

    def step(
        x: Tensor,
        used: Tensor,
        coefficients: Tensor,
        places: Tensor,
        positions: Tensor,
        bias: Tensor,
        source_mask: Tensor,
        own: Sequence[Tensor],
        cross: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> Tensor:
        """x [M, D], used and coefficients [M, K], places and positions [M], bias [M, H, T], source_mask [M, S]; own and
        cross, one tensor per layer, [2, .., H, .., d_kv] -> [M, D]."""
        count, total, size = x.shape[0], bias.shape[-1], source_mask.shape[-1]
        norms = iter(parameters[-3 * len(blocks) - 1 :])
        factors = iter(parameters)
        source_mask = source_mask.unsqueeze(1)
        rows = places if ragged else slice(count)
        x = x.float()
        for i, (qkv, o, cross_q, cross_o, wi, wo) in enumerate(blocks):
            made = qkv(norm(x, next(norms)), used, coefficients, factors).view(count, 3, heads, d_kv)
            made = made.to(own[i].dtype)
            own[i][:, places, :, positions] = made[:, 1:]
            mixed = attend(made[:, 0], own[i][0, rows, :, :total], own[i][1, rows, :, :total], bias)
            x = x + o(mixed, used, coefficients, factors)[:, 0]
            q = cross_q(norm(x, next(norms)), used, coefficients, factors).view(count, heads, d_kv).to(cross[i].dtype)
            mixed = attend(q, cross[i][0, rows, :, :size], cross[i][1, rows, :, :size], source_mask)
            x = x + cross_o(mixed, used, coefficients, factors)[:, 0]
            up = wi(norm(x, next(norms)), used, coefficients, factors)
            up = F.gelu(up[:, 0], approximate="tanh") * up[:, 1] if gated else F.relu(up[:, 0])
            x = x + wo(up.to(dtype), used, coefficients, factors)[:, 0]
        return norm(x, next(norms))

    return step
