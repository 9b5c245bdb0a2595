"""What it takes to run a decoding step as a whole, by a compiler or a CUDA graph: linear layers as functions of
tensors, and `torch.compile` for the functions of one model."""

from __future__ import annotations

import itertools
import re
import sysconfig
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.linear import LaneLinear

CONSTANT = "parameters"  # the argument of a compiled function that is the same in every call

# The compiler cannot see into oneDNN's blocked layout, so the product with such a matrix is a custom operator that
# refers to the matrix by a number. It is the smallest free one, so that the compiler's cache on disk recognises the
# same model in another process, and in this one after a reload.
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
class StepLinear:
    """What a step function needs to know about a `LaneLinear`; its tensors come from a list of parameters, in order."""

    matrix: int | None  # None: the matrix is not packed, and is among the parameters
    columns: int  # of the whole product: projections, then what the adapters' first factors give
    outs: tuple[int, ...]  # features of each projection
    adapters: int  # 0: no adapter touches this layer
    rank: int
    has_bias: bool  # among the parameters; that of a packed matrix is in its product
    beside: bool  # the first factors are a matrix of their own, among the parameters

    @classmethod
    def of(cls, layer: LaneLinear, parameters: list[Tensor]) -> StepLinear:
        """Appends the layer's tensors to `parameters`."""
        base, lora_b = layer.base, layer.lora_b
        number = None
        if base.weight is None:
            number = next(free for free in itertools.count() if free not in _matrices)
            _matrices[number] = base
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
        second = next(parameters)[:, used].transpose(0, 1).float()  # [M, P, K, R, out]
        return straight + (low.unsqueeze(-1) * second).sum(dim=(2, 3))

    def apart(self, x: Tensor, used: Tensor, coefficients: Tensor, parameters: Iterator[Tensor]) -> list[Tensor]:
        """The same for projections that may differ in size: [M, out] each."""
        straight, low = self._products(x, used, coefficients, parameters)
        parts = list(straight.split(list(self.outs), dim=1))
        if low is None:
            return parts
        seconds = next(parameters)
        return [
            part + (low[:, p].unsqueeze(-1) * seconds[p, :, :, :out][used].float()).sum(dim=(1, 2))
            for p, (part, out) in enumerate(zip(parts, self.outs, strict=True))
        ]

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


# Numbers that are no sizes never change.
_SETTINGS = {"specialize_int": True, "specialize_float": True}


@contextmanager
def compiling() -> Iterator[None]:
    """Around the first calls of compiled functions, which compile them.

    Raises:
        UnsupportedModel: torch cannot compile here.
    """
    try:
        with torch._dynamo.config.patch(_SETTINGS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings are about its internals
            yield
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
        reason = " ".join(str(error).partition("\n\n")[0].split()) or type(error).__name__
        raise UnsupportedModel(f"compile is on, but torch cannot compile here: {reason}", param="compile") from error


def check_compiler() -> None:
    """Raises UnsupportedModel when torch finds no C++ compiler, or the compiler would find no Python."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # the compiler's modules take a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        reason = str(error).partition(":")[2].strip()
        raise UnsupportedModel(
            f"compile is on and torch finds no C++ compiler {reason}; install g++ or name one in CXX", param="compile"
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UnsupportedModel(
            "compile is on and this Python has no headers (Python.h); on Debian python3-dev has them", param="compile"
        )


def compile_for_one_model(function: Callable[..., Tensor], *, dynamic: bool) -> Callable[..., Tensor]:
    """`torch.compile` for one model, guarded only by what can differ from call to call: the sizes.

    By default it also guards every number, function and parameter that the code names, 1,200 of them for T5-base, which
    took 3 % of a step. Those of one model never change, so each model gets a code object of its own and no two models
    share compiled code. That also lets a process load any number of models.
    """
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
    constant = {CONSTANT, *code.co_freevars}

    def root(name: str) -> str:
        return re.split(r"\W", name, maxsplit=1)[0]  # of `parameters[3]`, `norm.__closure__[1]`

    def ask(guards: Sequence[Any]) -> list[bool]:
        return [not guard.is_global and root(guard.name) not in constant for guard in guards]

    made: Callable[..., Tensor] = torch.compile(own, dynamic=dynamic, fullgraph=True, options={"guard_filter_fn": ask})
    # Compiled code is stored with the code object and refers back to it: a cycle that Python's collector cannot see.
    weakref.finalize(made, torch._dynamo.eval_frame.remove_from_cache, code)
    return made
