"""Quantised matrices, with FBGEMM, which torch includes on x86.

A decoding step is bound by reading its weights. Both formats have float32 inputs and outputs, and a row of a batch does
not depend on other rows, except for rounding in float16. Figures are in docs/log.md.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_MOST = 127  # of a weight in int8
# Of an input. With 7 bits, two products of an input and a weight always fit into the 16 bits in which a CPU without
# VNNI adds them; with 8 they are cut off now and then.
_MOST_INPUT = 63
_ZERO = _MOST_INPUT + 1  # inputs are stored from 1 up


class Compact(Protocol):
    """A quantised matrix [out, in]."""

    nbytes: int

    def product(self, x: Tensor) -> Tensor:
        """x [M, in] float32 -> x W^T [M, out] float32."""

    def rows(self, ids: Tensor) -> Tensor:
        """Rows with these indices [...] -> [..., in] float32; only with `looked_up`."""


class Float16Matrix:
    """float16: the error of a weight is at most 1/4096 of it, an eighth of bfloat16's."""

    def __init__(self, weight: Tensor, multiplied: bool = True, looked_up: bool = False) -> None:
        """multiplied: keep what `product` needs; looked_up: what `rows` needs."""
        self._packed: Any = None
        if multiplied:
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), None)
        self._rows = weight.half() if looked_up else None
        self.nbytes = weight.numel() * 2 * (multiplied + looked_up)

    @staticmethod
    def takes(weight: Tensor) -> bool:
        """Whether all weights are within the format's range."""
        return bool(weight.abs().amax() <= torch.finfo(torch.float16).max)

    def product(self, x: Tensor) -> Tensor:
        made: Tensor = _float16_product()(x, self._packed)
        return made

    def rows(self, ids: Tensor) -> Tensor:
        assert self._rows is not None  # asked for when it was made
        return F.embedding(ids, self._rows).float()


class Int8Matrix:
    """int8: integers from -127 to 127 with a scale per row, which is an output channel. The error of a weight is at
    most 1/254 of the largest in its row.

    The product uses integers too. A language model's inputs have outliers, and 7 bits leave little precision for the
    other numbers, so an input is the sum of two terms: the nearest of 127 steps, and the remainder in steps of 1/126 of
    those. Both go through one product as two rows, in little more time than one; the remaining error is far below that
    of the weights.
    """

    def __init__(self, weight: Tensor, multiplied: bool = True, looked_up: bool = False) -> None:
        """multiplied: keep what `product` needs; looked_up: what `rows` needs."""
        largest = weight.abs().amax(dim=1).float()
        scale = torch.where(largest > 0, largest / _MOST, 1.0)
        numbers = _per_channel(weight.float(), scale)
        self._packed: Any = None
        if multiplied:
            with _engine():
                self._packed = torch.ops.quantized.linear_prepack(numbers, None)
        self._rows = (numbers.int_repr(), scale) if looked_up else None
        self.nbytes = weight.numel() * (multiplied + looked_up) + 4 * len(scale)

    def product(self, x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True).clamp_(min=1e-30).div_(_MOST_INPUT)
        steps = x / scale
        near = steps.round()
        left = (steps - near).mul_(2 * _MOST_INPUT)
        both = _int8_product()(torch.cat([near, left]), 1.0, _ZERO, self._packed)
        return torch.add(both[: len(x)], both[len(x) :], alpha=0.5 / _MOST_INPUT).mul_(scale)

    def rows(self, ids: Tensor) -> Tensor:
        assert self._rows is not None  # asked for when it was made
        numbers, scale = self._rows
        return F.embedding(ids, numbers).float() * scale[ids].unsqueeze(-1)


@functools.cache
def _float16_product() -> Any:
    return torch.ops.quantized.linear_dynamic_fp16.default  # for the reason in `frozen._packed_operation`


@functools.cache
def _int8_product() -> Any:
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default


def _per_channel(weight: Tensor, scale: Tensor) -> Tensor:
    """torch's own kind of quantised tensor, which packing for FBGEMM takes and nothing else does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*quantized tensor creation functions", UserWarning)  # in releases to come
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        return torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)


@contextmanager
def _engine() -> Iterator[None]:
    """torch packs for the engine that is set: its default would be another one on CPUs with VNNI."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
