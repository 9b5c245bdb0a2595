"""Linear layers as functions of tensors, for a decoding step that is compiled or captured as a whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.linear import LaneLinear

# The compiler cannot see into oneDNN's blocked layout, so the product with such a matrix is a custom operator that
# refers to the matrix by its number in its model: what is compiled for a model then fits every other one of its shape.
_running = threading.local()
_library = torch.library.Library("emorl", "DEF")
_library.define("packed_product(Tensor x, int matrix, int columns) -> Tensor")


def _packed_product(x: Tensor, matrix: int, columns: int) -> Tensor:  # noqa: ARG001 - the shape, for the compiler
    matrices: Sequence[FrozenMatrix] = _running.matrices
    return matrices[matrix].packed_product(x)


def _packed_product_shape(x: Tensor, matrix: int, columns: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], columns)


_library.impl("packed_product", _packed_product, "CPU")
torch.library.register_fake("emorl::packed_product", _packed_product_shape, lib=_library)


@contextmanager
def multiplying(matrices: Sequence[FrozenMatrix]) -> Iterator[None]:
    """Within the block, on this thread, packed matrices are those of this model."""
    _running.matrices = matrices
    try:
        yield
    finally:
        _running.matrices = ()


@dataclass(slots=True)
class StepTensors:
    """A step function's parameters, in the order in which it uses them."""

    parameters: list[Tensor]
    matrices: list[FrozenMatrix]  # packed


@dataclass(frozen=True, slots=True)
class StepLinear:
    """A step function's description of a `LaneLinear`; its tensors come from a list of parameters, in order."""

    matrix: int | None  # its number among the packed ones; None: it is not packed, and is among the parameters
    columns: int  # of the whole product: projections, then what the adapters' first factors give
    outs: tuple[int, ...]  # features of each projection
    adapters: int  # 0: no adapter touches this layer
    rank: int
    has_bias: bool  # among the parameters; that of a packed matrix is in its product
    beside: bool  # the first factors are a matrix of their own, among the parameters

    @classmethod
    def of(cls, layer: LaneLinear, tensors: StepTensors) -> StepLinear:
        """Appends the layer's own to `tensors`."""
        base, lora_b, parameters = layer.base, layer.lora_b, tensors.parameters
        number = None
        if base.weight is None:
            number = len(tensors.matrices)
            tensors.matrices.append(base)
        else:
            parameters.append(base.weight)
            if base.bias is not None:
                parameters.append(base.bias)
        adapters, rank = (0, 0) if lora_b is None else lora_b.shape[1:3]
        if base.extra is not None:
            parameters.append(base.extra)
        if lora_b is not None:
            parameters.append(lora_b.detach())
        columns = sum(layer.outs) + (layer.projections * adapters * rank if base.extra is None else 0)
        has_bias = number is None and base.bias is not None
        return cls(number, columns, layer.outs, adapters, rank, has_bias, base.extra is not None)

    def __call__(self, x: Tensor, used: Tensor, coefficients: Tensor, parameters: Iterator[Tensor]) -> Tensor:
        """As `LaneLinear.forward`: x [M, in], used and coefficients [M, K] -> [M, P, out] float32."""
        straight, low = self._products(x, used, coefficients, parameters)
        straight = straight.view(-1, len(self.outs), self.outs[0])
        if low is None:
            return straight
        seconds = next(parameters)
        if self._mixes(used):
            return straight + torch.bmm(_flat(low, seconds).transpose(0, 1), seconds.flatten(1, 2)).transpose(0, 1)
        second = seconds[:, used].transpose(0, 1).float()  # [M, P, K, R, out]
        return straight + (low.unsqueeze(-1) * second).sum(dim=(2, 3))

    def apart(self, x: Tensor, used: Tensor, coefficients: Tensor, parameters: Iterator[Tensor]) -> list[Tensor]:
        """The same for projections that may differ in size: [M, out] each."""
        straight, low = self._products(x, used, coefficients, parameters)
        parts = list(straight.split(list(self.outs), dim=1))
        if low is None:
            return parts
        seconds = next(parameters)
        if self._mixes(used):
            flat = _flat(low, seconds)
            return [
                part + flat[:, p] @ seconds[p].flatten(0, 1)[:, :out]
                for p, (part, out) in enumerate(zip(parts, self.outs, strict=True))
            ]
        return [
            part + (low[:, p].unsqueeze(-1) * seconds[p, :, :, :out][used].float()).sum(dim=(1, 2))
            for p, (part, out) in enumerate(zip(parts, self.outs, strict=True))
        ]

    def _mixes(self, used: Tensor) -> bool:
        """Whether every row names all adapters, in their order (`LaneIndex.used`). Then one product serves all rows,
        where gathering took four times as long as the whole step without adapters."""
        return used.shape[1] == self.adapters > 1

    def _products(
        self, x: Tensor, used: Tensor, coefficients: Tensor, parameters: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """x W^T [M, sum of outs] and what each row has of its adapters' first factors [M, P, K, R], in float32."""
        if self.matrix is None:
            y = F.linear(x, next(parameters), next(parameters) if self.has_bias else None)
        else:
            y = torch.ops.emorl.packed_product(x, self.matrix, self.columns)
        if not self.adapters:
            return y.float(), None
        low = F.linear(x, next(parameters)) if self.beside else y[:, sum(self.outs) :]
        # Each row gathers its own adapters' second factors: with few rows one product for all is no faster.
        low = low.view(-1, len(self.outs), self.adapters, self.rank)
        own = used.view(-1, 1, used.shape[1], 1).expand(-1, len(self.outs), -1, self.rank)
        low = low.gather(2, own).float() * coefficients.view(-1, 1, coefficients.shape[1], 1)
        return y[:, : sum(self.outs)].float(), low


def _flat(low: Tensor, seconds: Tensor) -> Tensor:
    """[M, P, K, R] -> [M, P, K * R] in the number format of the second factors."""
    return low.flatten(2).to(seconds.dtype)
