"""One base matrix, N stacked adapters, one product for all lane rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex


class LaneLinear(nn.Module):
    """P fused projections of one input (q, k and v are P = 3), each a frozen base matrix plus N low-rank adapters.

    y_p = x W_p^T + scale_n (x A_pn^T) B_pn for a row of lane n (LoRA, Hu et al. 2021). Rank R is the largest among the
    adapters; smaller ones are padded with zeros, which get zero gradients. Works under autograd.

    Shapes: weight [P * out, in]; lora_a [P, N, R, in]; lora_b [P, N, R, out]; scale [P, N]. Projections may differ in
    size, as q does from k and v where heads are grouped: `out` is then the largest, and lora_b is padded with zeros.
    """

    def __init__(
        self, weight: Tensor, projections: int = 1, *, outs: Sequence[int] | None = None, bias: Tensor | None = None
    ) -> None:
        """outs: features of each projection, where they differ; bias: [sum of outs], for `side_by_side` alone."""
        super().__init__()
        self.outs = tuple(outs) if outs else (weight.shape[0] // projections,) * projections
        self.projections = len(self.outs)
        self.in_features = weight.shape[1]
        self.out_features = max(self.outs)
        self.base = FrozenMatrix(weight, bias)
        self.lora_a: nn.Parameter | None = None  # None when serving: the factors are further rows of `base` then
        self.lora_b: nn.Parameter | None = None
        self.scale: Tensor | None = None
        self.dropout = 0.0  # LoRA dropout on the adapters' input, training only

    def attach(self, lora_a: Tensor, lora_b: Tensor, scale: Tensor | None = None) -> None:
        """Set the stacked adapters. Without `scale`, for serving, the scale is part of B and nothing is trained: the
        first factors then join the base matrix, so that one product gives x W^T and every x A^T."""
        trained = scale is not None
        self.lora_a = nn.Parameter(lora_a) if trained else None
        self.lora_b = nn.Parameter(lora_b, requires_grad=trained)
        self.scale = scale
        self.base.extend(None if trained else lora_a.reshape(-1, self.in_features))

    def detach(self) -> None:
        """Back to the bare base."""
        self.lora_a = self.lora_b = self.scale = None
        self.base.extend(None)

    def features(self, projection: int) -> tuple[int, int]:
        """Features in and out of the whole layer, for a split layer those of all parts, as in adapters."""
        return self.in_features, self.outs[projection]

    def own(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's part of an adapter's factors a [R, in] and b [out, R], if the layer is split."""
        return a, b

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the stacked factors, padding included."""
        own = sum(p.numel() * p.element_size() for p in (self.lora_a, self.lora_b) if p is not None)
        return own + self.base.extra_nbytes

    def lora_options(self) -> dict[str, Any]:
        """dtype and device that stacked adapters must have."""
        return {"dtype": self.base.dtype, "device": self.base.device}

    def forward(self, x: Tensor, lanes: LaneIndex) -> Tensor:
        """x [M, in] -> [M, out] for one projection, [P, M, out] for several, which must be equally large. `lanes` may
        have more rows than x."""
        rows = x.shape[0]
        if rows < lanes.rows:
            return self(F.pad(x, (0, 0, 0, lanes.rows - rows)), lanes)[..., :rows, :]
        y, low = self.base.both(x)  # [M, P * out], [M, P * N * R]
        if self.lora_b is None or not lanes.any_adapter:
            return y if self.projections == 1 else y.view(-1, self.projections, self.out_features).transpose(0, 1)
        rank = self.lora_b.shape[2]
        columns = self.lora_b.shape[1] * rank
        if self.lora_a is not None:
            if self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            low = F.linear(x, self.lora_a.view(-1, self.in_features))
        assert low is not None  # where there is an adapter
        low = low.view(-1, self.projections, columns) * lanes.mask(rank, low.dtype)
        if self.scale is not None:
            low = low * self.scale.repeat_interleave(rank, dim=1).to(low.dtype)
        b = self.lora_b.view(self.projections, columns, self.out_features)
        if self.projections == 1:
            return torch.addmm(y, low.squeeze(1), b[0])
        return torch.baddbmm(y.view(-1, self.projections, self.out_features).transpose(0, 1), low.transpose(0, 1), b)

    def side_by_side(self, x: Tensor, lanes: LaneIndex) -> Tensor:
        """x [M, in] -> [M, sum of outs], the projections side by side, with the bias; for serving only, without
        gradients. `lanes` may have more rows than x; the result then has as many."""
        if x.shape[0] < lanes.rows:
            x = F.pad(x, (0, 0, 0, lanes.rows - x.shape[0]))
        straight, low = self.base.both(x)
        if self.lora_b is None or low is None or not lanes.any_adapter:
            return straight
        _, adapters, rank, _ = self.lora_b.shape
        low = low.view(-1, self.projections, adapters * rank) * lanes.mask(rank, low.dtype)
        first = 0
        for p, out in enumerate(self.outs):
            second = self.lora_b[p].view(adapters * rank, -1)[:, :out]
            straight[:, first : first + out].addmm_(low[:, p], second)
            first += out
        return straight
