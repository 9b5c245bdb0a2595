"""The compiler process: recipes on standard input -> files of compiled functions."""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from emorl_core.errors import one_line
from emorl_core.files.writing import replacing
from emorl_core.models.compiling import Recipe, Shape, check_compiler

_MOST = 2**24  # of any size
_PR_SET_PDEATHSIG = 1
_SETTINGS = {
    "cpp.dynamic_threads": True,  # the number of threads is chosen at run time
    "compile_threads": 1,
    # The code between kernels only calls them: optimising it doubles the compile time without a speed-up.
    "aot_inductor.compile_wrapper_opt_level": "O0",
}


class _Whole(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def forward(self, *arguments: Any) -> Tensor:
        result: Tensor = self._function(*arguments)
        return result


def compile_to(recipe: Recipe, path: Path) -> None:
    """Compile one function. Weights are never touched: their memory is allocated but not used."""
    module, _, name = recipe.make.partition(":")
    function = getattr(importlib.import_module(module), name)(*recipe.settings)
    dims: dict[str, Dim] = {}

    def empty(shape: Shape) -> Tensor:
        return torch.empty_strided(shape.sizes, shape.strides, dtype=shape.dtype)

    def named(shape: Shape) -> dict[int, Dim]:
        return {place: dims.setdefault(size, Dim(size, min=2, max=_MOST)) for place, size in shape.names}

    examples = tuple([empty(s) for s in each] if isinstance(each, list) else empty(each) for each in recipe.arguments)
    sizes = tuple([named(s) for s in each] if isinstance(each, list) else named(each) for each in recipe.arguments)
    with torch.no_grad(), replacing(path) as written:
        program = torch.export.export(
            _Whole(function),
            examples,
            dynamic_shapes=(sizes,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        made = written.with_suffix(".pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(made), inductor_configs=_SETTINGS)
        made.replace(written)


def end_with(parent: int) -> None:
    """On Linux, end this process when its parent process, `parent`, is gone for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before this took effect
        sys.exit("who asked for it has gone")


def main() -> None:
    recipes, idly, parent = pickle.load(sys.stdin.buffer)
    end_with(parent)
    if idly:
        os.nice(19)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's warnings are about its internals
    try:
        check_compiler()
        for recipe, path in recipes:
            compile_to(recipe, path)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into one line of who asked
        sys.exit(one_line(error))
