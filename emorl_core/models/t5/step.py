"""A decoding step of T5 as one function of tensors, for whoever runs it as a whole: a compiler, a CUDA graph.

A step is some 80 products of few rows and 500 small operations between them, which take longer than the products when
they are called one by one. This is `T5.step` for one token a row, written so that it can be compiled or captured:
tensors in, tensors out, no Python that changes from step to step, no sizes that differ but those of its arguments.
Letters as in `t5.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.cache.kv import KVCache, round_size
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.linear import LaneLinear

if TYPE_CHECKING:
    from emorl_core.models.t5.model import T5

# A compiler cannot look into oneDNN's blocked layout, so a product with such a matrix is an operation of its own, and
# names the matrix by a number, the smallest that is free: that is what lets the compiler's cache on disk recognise the
# same model in another process, and in this one after a reload or two.
_matrices: WeakValueDictionary[int, FrozenMatrix] = WeakValueDictionary()
_library = torch.library.Library("emorl", "DEF")
_library.define("packed_product(Tensor x, int matrix, int columns) -> Tensor")


def _packed_product(x: Tensor, matrix: int, columns: int) -> Tensor:  # noqa: ARG001 - the shape, for the compiler
    return _matrices[matrix].packed_product(x)


def _packed_product_shape(x: Tensor, matrix: int, columns: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], columns)


_library.impl("packed_product", _packed_product, "CPU")
torch.library.register_fake("emorl::packed_product", _packed_product_shape, lib=_library)


@dataclass(frozen=True, slots=True)
class _Linear:
    """What the step has to know of a `LaneLinear`; its tensors are taken from the list of parameters in order."""

    matrix: int | None  # None: the matrix is not packed, and is among the parameters
    columns: int  # of the whole product: projections, then what the adapters' first factors give
    projections: int
    out: int
    adapters: int  # 0: no adapter touches this layer
    rank: int


Step = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor
]


class StepFunction:
    """The function for one model with the adapters it has now, and its parameters."""

    def __init__(self, model: T5) -> None:
        self.parameters: list[Tensor] = []
        blocks = [tuple(self._add(layer) for layer in _linears(block)) for block in model.decoder]
        for block in model.decoder:
            self.parameters += block.norms  # type: ignore[arg-type]
        self.parameters.append(model.decoder_norm)
        config = model.config
        self.function = _step_of(blocks, config.num_heads, config.d_kv, config.epsilon, config.gated, model.dtype)

    def _add(self, layer: LaneLinear) -> _Linear:
        base, lora_b = layer.base, layer.lora_b
        number = None
        if base.weight is None:
            number = next(free for free in itertools.count() if free not in _matrices)
            _matrices[number] = base
        else:
            self.parameters.append(base.weight)
        adapters, rank = (0, 0) if lora_b is None else lora_b.shape[1:3]
        if lora_b is not None:
            self.parameters.append(lora_b.detach())
        columns = layer.projections * (layer.out_features + adapters * rank)
        return _Linear(number, columns, layer.projections, layer.out_features, adapters, rank)


class StepRows:
    """The arguments that change only when rows come, leave or move; at least `rows` of them.

    Spare rows repeat the first lane row's arguments in places of the cache that nobody uses.
    """

    def __init__(self, lanes: Tensor, cache: KVCache, rows: int) -> None:
        """lanes [M] of the cache's M rows; rows >= M."""
        spare = rows - cache.count
        device = lanes.device
        self.lanes = torch.cat([lanes, lanes[:1].expand(spare)])
        self.places = torch.arange(rows, device=device)
        lengths = cache.source_lengths + cache.source_lengths[:1] * spare
        span = torch.arange(round_size(max(lengths)), device=device)
        padding = span >= torch.tensor(lengths, device=device).unsqueeze(1)
        self.source_mask = torch.zeros(padding.shape, device=device).masked_fill(padding, float("-inf"))  # [rows, S]


def _linears(block: torch.nn.Module) -> tuple[LaneLinear, ...]:
    return (block.qkv, block.o, block.cross_q, block.cross_o, block.wi, block.wo)  # type: ignore[return-value]


def _step_of(
    blocks: Sequence[tuple[_Linear, ...]], heads: int, d_kv: int, epsilon: float, gated: bool, dtype: torch.dtype
) -> Step:
    """The function to compile, for one model's shapes."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight.float()).to(dtype)

    def linear(layer: _Linear, x: Tensor, lanes: Tensor, parameters: Iterator[Tensor]) -> Tensor:
        """As `LaneLinear.forward`: x [M, in] -> [M, P, out] float32."""
        if layer.matrix is None:
            y = F.linear(x, next(parameters))
        else:
            y = torch.ops.emorl.packed_product(x, layer.matrix, layer.columns)
        wide = layer.projections * layer.out
        straight = y[:, :wide].view(-1, layer.projections, layer.out).float()
        if not layer.adapters:
            return straight
        # Each row takes its own adapter's second factor: few rows, so nothing is gained from a product for all of them.
        own = (lanes - 1).clamp(min=0)
        low = y[:, wide:].view(-1, layer.projections, layer.adapters, layer.rank)
        low = low.gather(2, own.view(-1, 1, 1, 1).expand(-1, layer.projections, 1, layer.rank))[:, :, 0]  # [M, P, R]
        low = low.float() * (lanes > 0).view(-1, 1, 1)
        second = next(parameters)[:, own].transpose(0, 1).float()  # [M, P, R, out]
        return straight + (low.unsqueeze(-1) * second).sum(dim=2)

    def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """q [M, H, d_kv], keys and values [M, H, T, d_kv], mask [M, 1 or H, T] -> [M, H * d_kv]."""
        scores = (q.unsqueeze(2) * keys).sum(dim=-1) + mask
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(-1) * values).sum(dim=2).flatten(1).to(dtype)

    def step(
        x: Tensor,
        lanes: Tensor,
        places: Tensor,
        positions: Tensor,
        bias: Tensor,
        source_mask: Tensor,
        own: Sequence[Tensor],
        cross: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> Tensor:
        """x [M, D], lanes, places, positions [M], bias [M, H, T], source_mask [M, S]; own and cross, a tensor a layer,
        [2, .., H, .., d_kv] -> [M, D]."""
        count, total, size = x.shape[0], bias.shape[-1], source_mask.shape[-1]
        norms = iter(parameters[-3 * len(blocks) - 1 :])
        factors = iter(parameters)
        source_mask = source_mask.unsqueeze(1)
        x = x.float()
        for i, (qkv, o, cross_q, cross_o, wi, wo) in enumerate(blocks):
            made = linear(qkv, norm(x, next(norms)), lanes, factors).view(count, 3, heads, d_kv)
            made = made.to(own[i].dtype)
            own[i][:, places, :, positions] = made[:, 1:]
            mixed = attend(made[:, 0], own[i][0, :count, :, :total], own[i][1, :count, :, :total], bias)
            x = x + linear(o, mixed, lanes, factors)[:, 0]
            q = linear(cross_q, norm(x, next(norms)), lanes, factors).view(count, heads, d_kv).to(cross[i].dtype)
            mixed = attend(q, cross[i][0, :count, :, :size], cross[i][1, :count, :, :size], source_mask)
            x = x + linear(cross_o, mixed, lanes, factors)[:, 0]
            up = linear(wi, norm(x, next(norms)), lanes, factors)
            up = F.gelu(up[:, 0], approximate="tanh") * up[:, 1] if gated else F.relu(up[:, 0])
            x = x + linear(wo, up.to(dtype), lanes, factors)[:, 0]
        return norm(x, next(norms))

    return step
