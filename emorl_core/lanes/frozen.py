"""A frozen matrix in the layout that is fastest on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.fbgemm import Compact, Float16Matrix, Int8Matrix
from emorl_core.types import Quantize


class FrozenMatrix(nn.Module):
    """A frozen base matrix: y = x W^T + b, if there is a bias.

    On a CPU the matrix can be kept in oneDNN's blocked layout (`pack`). With few rows that product is two to three
    times as fast as the plain one there, and the bits of a row do not depend on how many rows run beside it.
    Or it can be quantised (`quantize`).

    Further rows (`extend`) are adapters' first factors. They are part of the same product, except with a quantised
    matrix, where they are not quantised.
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
        self.extra_nbytes = 0
        self.compact: Compact | None = None
        self.extra: Tensor | None = None  # the further rows, only beside a quantised matrix
        self._packs = self._keeps_plain = False
        self._packed: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of matrix and bias, without further rows."""
        rows, columns = self.shape
        numbers = rows * columns * self.dtype.itemsize if self.compact is None else self.compact.nbytes
        return numbers + (0 if self.bias is None else rows * self.dtype.itemsize)

    def pack(self, *, keep_plain: bool = False) -> None:
        """Switch to the blocked layout where that helps; `keep_plain` also keeps the plain matrix, for autograd."""
        weight = self.weight
        if weight is None or weight.device.type != "cpu":
            return
        if weight.numel() >= self.PACK_FROM and packed_product_available(weight.dtype):
            self._packs, self._keeps_plain = True, keep_plain
            self._set(weight)

    def quantize(self, how: Quantize, *, multiplied: bool = True, looked_up: bool = False) -> None:
        """Quantise the matrix if it is large enough to matter. Only before it is extended.

        multiplied: products are asked for; looked_up: `rows` are.
        """
        if self.shape[0] * self.shape[1] < self.PACK_FROM or how == "off":
            return
        plain = self._plain()
        if how == "int8":
            self.compact = Int8Matrix(plain, multiplied, looked_up)
        elif Float16Matrix.takes(plain):
            self.compact = Float16Matrix(plain, multiplied, looked_up)
        else:
            return
        self._packs, self._packed, self.weight = False, None, None

    def extend(self, rows: Tensor | None) -> None:
        """Append rows [E, in] to the matrix, replacing those appended before: y gets E further columns."""
        if rows is None and not self.extra_nbytes:
            return
        self.extra_nbytes = 0 if rows is None else rows.numel() * rows.element_size()
        if self.compact is not None:
            # A separate tensor: a view's sizes could coincide with the number of lane rows in the compiler.
            self.extra = None if rows is None else rows.clone()
            return
        plain = self._plain()[: self.shape[0]]
        self._set(plain.clone() if rows is None else torch.cat([plain, rows]))
        if self.bias is not None:
            bias = self.bias[: self.shape[0]]
            self.bias = bias.clone() if rows is None else F.pad(bias, (0, len(rows)))

    def forward(self, x: Tensor) -> Tensor:
        """x [M, in] -> [M, out + E]."""
        if self.compact is not None:
            y, low = self.both(x)
            return y if low is None else torch.cat([y, low], dim=1)
        # Under autocast rows may come in another format, which only the plain matrix takes.
        alike = self._packed is not None and (self.weight is None or x.dtype == self._packed.dtype)
        if alike and not (x.requires_grad and torch.is_grad_enabled()):
            return self.packed_product(x)
        if self.weight is None:
            raise RuntimeError("this matrix was packed for inference; load the model with training=True for gradients")
        return F.linear(x, self.weight, self.bias)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [M, in] -> [M, out], and what the further rows give, [M, E]; None without any."""
        if self.compact is None:
            y = self(x)
            return (y[:, : self.shape[0]], y[:, self.shape[0] :]) if self.extra_nbytes else (y, None)
        return self.packed_product(x), None if self.extra is None else F.linear(x, self.extra)

    def packed_product(self, x: Tensor) -> Tensor:
        """The product with a packed or quantised matrix, for callers that need no gradients."""
        if self.compact is not None:
            y = self.compact.product(x.float()).to(x.dtype)
            return y if self.bias is None else y + self.bias
        product: Tensor = _packed_operation()(x, self._packed, self.bias, "none", [], "")
        return product

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of an embedding, which is never packed: [...] -> [..., in]."""
        if self.compact is not None:
            return self.compact.rows(ids).to(self.dtype)
        assert self.weight is not None
        return F.embedding(ids, self.weight)

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
    # The overload itself, since looking it up by name takes a large part of the time of a small product.
    operation: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operation


def packed_product_available(dtype: torch.dtype = torch.float32) -> bool:
    """oneDNN's packed linear product is private to torch's compiler stack, so it is used only if it exists. In bfloat16
    it raises on a CPU without AVX512."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
