"""One base matrix, N stacked adapters, one product for all lanes.

A *lane row* is one lane of one sequence. Lane rows are kept flat, [M, in], each with the number of its adapter: a
batch may then hold exactly the lanes that its requests give weight to, a sequence may use one lane and its neighbour
five, and prefill, decoding, sweeps and training are one shape. (`design.md` draws a full [N, rows, in] grid; a grid
would run, and keep caches for, lanes that a row gives no weight to as soon as one neighbour uses them.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's usual name

BASE_LANE = 0  # lane 0 is the bare model; lane i > 0 uses adapter i - 1


class LaneIndex:
    """Which adapter each of M lane rows uses.

    The low-rank part is computed for all N adapters side by side, [M, N * R], and the columns of the other adapters
    are masked away before the second factor. R is small, so those spare columns cost less than sorting the rows by
    adapter; there is no loop over adapters.
    """

    def __init__(self, lanes: Tensor, adapters: int) -> None:
        """lanes: [M] int64 lane numbers (0 is base); adapters: N, the number of stacked adapters."""
        self.lanes = lanes
        self.rows = lanes.shape[0]
        self.adapters = adapters
        self.any_adapter = adapters > 0 and bool((lanes != BASE_LANE).any())
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self._repeated: dict[tuple[int, bool], LaneIndex] = {}

    def mask(self, rank: int, dtype: torch.dtype) -> Tensor:
        """[M, 1, N * rank]: 1 in the columns of the row's own adapter, 0 elsewhere (base rows are all 0)."""
        key = (rank, dtype)
        if key not in self._masks:
            adapter = torch.arange(1, self.adapters + 1, device=self.lanes.device)
            own = self.lanes.unsqueeze(1) == adapter  # [M, N]
            self._masks[key] = own.to(dtype).repeat_interleave(rank, dim=1).unsqueeze(1)
        return self._masks[key]

    def repeat(self, times: int) -> LaneIndex:
        """The index of [M * times] rows in which every lane row stands `times` times in a row (its tokens).

        Without gradients on a CPU, spare rows of the base follow, up to `round_rows`."""
        if times == 1:
            return self
        # Prompts come in any length, and oneDNN compiles a product for every number of rows it meets and keeps it, half
        # a MiB each (docs/log.md).
        rounded = self.lanes.device.type == "cpu" and not torch.is_grad_enabled()
        if (times, rounded) not in self._repeated:
            lanes = self.lanes.repeat_interleave(times)
            if rounded:
                lanes = F.pad(lanes, (0, round_rows(len(lanes)) - len(lanes)), value=BASE_LANE)
            self._repeated[times, rounded] = LaneIndex(lanes, self.adapters)
        return self._repeated[times, rounded]


def round_rows(rows: int) -> int:
    """The next of a few row counts, at most a fourth (or 15 rows) above: 16, 32, ... 128, 160, ... 256, 320, ..."""
    step = max(16, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step


class LaneLinear(nn.Module):
    """P fused projections of one input (q, k and v are P = 3), each a frozen base matrix plus N low-rank adapters.

    y_p = x W_p^T + scale_n (x A_pn^T) B_pn for a row of lane n (LoRA, Hu et al. 2021). Rank R is the largest among the
    adapters; smaller ones are padded with zeros, which get zero gradients. Works under autograd.

    Shapes: weight [P * out, in]; lora_a [P, N, R, in]; lora_b [P, N, R, out]; scale [P, N].
    """

    def __init__(self, weight: Tensor, projections: int = 1) -> None:
        super().__init__()
        self.projections = projections
        self.in_features = weight.shape[1]
        self.out_features = weight.shape[0] // projections
        self.base = FrozenMatrix(weight)
        self.lora_a: nn.Parameter | None = None  # None when serving: the factors are further rows of `base` then
        self.lora_b: nn.Parameter | None = None
        self.scale: Tensor | None = None
        self.dropout = 0.0  # LoRA dropout on the adapters' input, training only

    def attach(self, lora_a: Tensor, lora_b: Tensor, scale: Tensor | None = None) -> None:
        """Set the stacked adapters. Without `scale` it is part of B and nothing is trained, as serving has it: first
        factors then join the base matrix, so that one product gives x W^T and every x A^T."""
        trained = scale is not None
        self.lora_a = nn.Parameter(lora_a) if trained else None
        self.lora_b = nn.Parameter(lora_b, requires_grad=trained)
        self.scale = scale
        self.base.extend(None if trained else lora_a.reshape(-1, self.in_features))

    def detach(self) -> None:
        """Back to the bare base."""
        self.lora_a = self.lora_b = self.scale = None
        self.base.extend(None)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the stacked factors, padding included."""
        own = sum(p.numel() * p.element_size() for p in (self.lora_a, self.lora_b) if p is not None)
        return own + self.base.extra_nbytes

    def lora_options(self) -> dict[str, Any]:
        """dtype and device that stacked adapters must have."""
        return {"dtype": self.base.dtype, "device": self.base.device}

    def forward(self, x: Tensor, lanes: LaneIndex) -> Tensor:
        """x [M, in] -> [M, out] for one projection, [P, M, out] for several. `lanes` may have more rows than x."""
        rows = x.shape[0]
        if rows < lanes.rows:
            return self(F.pad(x, (0, 0, 0, lanes.rows - rows)), lanes)[..., :rows, :]
        wide = self.projections * self.out_features
        y = self.base(x)  # [M, P * out (+ P * N * R)]
        low = y[:, wide:]
        y = y[:, :wide]
        if self.lora_b is None or not lanes.any_adapter:
            return y if self.projections == 1 else y.view(-1, self.projections, self.out_features).transpose(0, 1)
        rank = self.lora_b.shape[2]
        columns = self.lora_b.shape[1] * rank
        if self.lora_a is not None:
            if self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            low = F.linear(x, self.lora_a.view(-1, self.in_features))
        low = low.view(-1, self.projections, columns) * lanes.mask(rank, low.dtype)
        if self.scale is not None:
            low = low * self.scale.repeat_interleave(rank, dim=1).to(low.dtype)
        b = self.lora_b.view(self.projections, columns, self.out_features)
        if self.projections == 1:
            return torch.addmm(y, low.squeeze(1), b[0])
        return torch.baddbmm(y.view(-1, self.projections, self.out_features).transpose(0, 1), low.transpose(0, 1), b)


class FrozenMatrix(nn.Module):
    """A base matrix that is never trained: y = x W^T.

    On a CPU the matrix can be kept in oneDNN's blocked layout (`pack`). With few rows that product is two to three
    times as fast as the plain one there, and the bits of a row do not depend on how many rows run beside it.
    """

    # Below this many elements the packed call's own overhead outweighs what it saves (docs/log.md).
    PACK_FROM = 512 * 512

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor | None
        self.shape = weight.shape  # [out, in], without further rows
        self.dtype, self.device = weight.dtype, weight.device
        self.nbytes = weight.numel() * weight.element_size()
        self.extra_nbytes = 0
        self._packs = self._keeps_plain = False
        self._packed: Tensor | None = None

    def pack(self, *, keep_plain: bool = False) -> None:
        """Switch to the blocked layout where that helps; `keep_plain` also keeps the plain matrix, for autograd."""
        weight = self.weight
        if weight is None or weight.device.type != "cpu":
            return
        if weight.numel() >= self.PACK_FROM and packed_product_available(weight.dtype):
            self._packs, self._keeps_plain = True, keep_plain
            self._set(weight)

    def extend(self, rows: Tensor | None) -> None:
        """Put rows [E, in] below the matrix, in place of those put there before: y gets E further columns."""
        if rows is None and not self.extra_nbytes:
            return
        plain = self.weight if self.weight is not None else self._unpacked()
        plain = plain[: self.shape[0]]
        self.extra_nbytes = 0 if rows is None else rows.numel() * rows.element_size()
        self._set(plain.clone() if rows is None else torch.cat([plain, rows]))

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is not None and not (x.requires_grad and torch.is_grad_enabled()):
            return self.packed_product(x)
        if self.weight is None:
            raise RuntimeError("this matrix was packed for inference; load the model with training=True for gradients")
        return F.linear(x, self.weight)

    def packed_product(self, x: Tensor) -> Tensor:
        """The product with the packed matrix, for callers that know there is one and that nothing needs gradients."""
        product: Tensor = _packed_operation()(x, self._packed, None, "none", [], "")
        return product

    def _set(self, weight: Tensor) -> None:
        if self._packs:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.weight = weight if not self._packs or self._keeps_plain else None

    def _unpacked(self) -> Tensor:
        assert self._packed is not None  # one of the two is there
        return self._packed.to_dense()


@functools.cache
def _packed_operation() -> Callable[..., Tensor]:
    # The overload itself: to look it up by its name takes a good part of what a small product takes.
    operation: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operation


def packed_product_available(dtype: torch.dtype = torch.float32) -> bool:
    """oneDNN's packed linear product is private to torch's compiler stack: use it only where it is really there. In
    bfloat16 it raises on a CPU without AVX512."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
