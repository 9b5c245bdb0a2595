"""One base matrix, N stacked adapters, one product for all lane rows."""

from __future__ import annotations

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
