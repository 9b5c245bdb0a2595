"""A matrix that is never trained, in the layout that the device multiplies fastest."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class FrozenMatrix(nn.Module):
    """A base matrix that is never trained: y = x W^T + b, where there is a bias.

    On a CPU the matrix can be kept in oneDNN's blocked layout (`pack`). With few rows that product is two to three
    times as fast as the plain one there, and the bits of a row do not depend on how many rows run beside it.
    """

    # Below this many elements the packed call's own overhead outweighs what it saves (docs/log.md).
    PACK_FROM = 512 * 512

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: [out, in]; bias: [out]."""
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor | None
        self.register_buffer("bias", bias, persistent=False)
        self.bias: Tensor | None
        self.shape = weight.shape  # [out, in], without further rows
        self.dtype, self.device = weight.dtype, weight.device
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in (weight, bias) if tensor is not None)
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
        self.extra_nbytes = 0 if rows is None else rows.numel() * rows.element_size()
        plain = self._plain()[: self.shape[0]]
        self._set(plain.clone() if rows is None else torch.cat([plain, rows]))
        if self.bias is not None:
            bias = self.bias[: self.shape[0]]
            self.bias = bias.clone() if rows is None else F.pad(bias, (0, len(rows)))

    def forward(self, x: Tensor) -> Tensor:
        """x [M, in] -> [M, out + E]."""
        if self._packed is not None and not (x.requires_grad and torch.is_grad_enabled()):
            return self.packed_product(x)
        if self.weight is None:
            raise RuntimeError("this matrix was packed for inference; load the model with training=True for gradients")
        return F.linear(x, self.weight, self.bias)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [M, in] -> [M, out], and what the further rows give, [M, E]; None without any."""
        y = self(x)
        return (y[:, : self.shape[0]], y[:, self.shape[0] :]) if self.extra_nbytes else (y, None)

    def packed_product(self, x: Tensor) -> Tensor:
        """The product with the packed matrix, for callers that know there is one and that nothing needs gradients."""
        product: Tensor = _packed_operation()(x, self._packed, self.bias, "none", [], "")
        return product

    def _set(self, weight: Tensor) -> None:
        if self._packs:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.weight = weight if not self._packs or self._keeps_plain else None

    def _plain(self) -> Tensor:
        if self.weight is not None:
            return self.weight
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
