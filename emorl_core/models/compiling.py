"""Compiles functions of tensors in another process, into files that this one loads.

Compiling holds the GIL for seconds at a time, during which streams would stall. So the compiler runs in a separate
process, sees shapes but no weights, and writes one file per function, which loads in a fraction of a second, now and at
later starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import platform
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from emorl_core.errors import UnsupportedModel, one_line

_KEPT = 24  # compiled functions in a folder; a model has up to five
_COMPILE = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from emorl_core.models import compiler"
_RUN = f"{_COMPILE}; compiler.main()"

Names = Mapping[int, str]  # dynamic dimension -> its name; equal names have equal sizes; other dimensions are fixed
Compiled = Callable[[list[Tensor]], Tensor]
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties of an argument's tensor."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    names: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, tensor: Tensor, names: Names) -> Shape:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tuple(sorted(names.items())))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A function to compile, described so that another process can build it. `make`: "module:function", which gives the
    function for these `settings`; arguments: a shape each, or a list of shapes."""

    make: str
    settings: tuple[Any, ...]
    arguments: tuple[Shape | list[Shape], ...]

    def file_name(self) -> str:
        """The cache key, over everything that the compiled code depends on."""
        sources = (self.make.partition(":")[0], "emorl_core.models.step_linear", "emorl_core.models.compiler")
        parts = [repr(self), torch.__version__, sys.version, _processor()]
        parts += [Path(str(spec.origin)).read_text() for spec in map(find_spec, sources) if spec is not None]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32] + ".pt2"


class Compilation(Generic[M]):
    """The functions to compile for one model, and how the model uses them."""

    def __init__(self, recipes: Sequence[Recipe], folder: Path, finish: Callable[[list[Compiled]], M]) -> None:
        """folder: where compiled functions are stored; finish: compiled functions -> the model."""
        self._paths = [folder / recipe.file_name() for recipe in recipes]
        self._recipes, self._folder, self._finish = recipes, folder, finish
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = self._paused = False
        self._lock = threading.Lock()

    def load(self) -> M | None:
        """The model with functions compiled earlier; None if some are missing."""
        if not all(path.is_file() for path in self._paths):
            return None
        try:
            return self._finish([_loaded(path) for path in self._paths])
        except RuntimeError:  # truncated, or from another machine
            with contextlib.suppress(OSError):
                for path in self._paths:
                    path.unlink(missing_ok=True)
            return None

    def make(self, *, idly: bool = False) -> M:
        """The same, compiling missing functions first, which takes a minute or more. idly: at the lowest priority.

        Raises:
            UnsupportedModel: it cannot be compiled here, or compilation was stopped.
        """
        found = self.load()
        if found is not None:
            return found
        missing = [(r, path) for r, path in zip(self._recipes, self._paths, strict=True) if not path.is_file()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._run(missing, idly)
        except OSError as error:
            raise _cannot(one_line(error)) from None
        found = self.load()
        if found is None:
            raise _cannot("what was compiled cannot be loaded")
        _prune(self._folder)
        return found

    def stop(self) -> None:
        """Abort `make`. May be called from any thread, at any time."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # including the C++ compiler that it started

    def pause(self, paused: bool) -> None:
        """Pause or resume the compiler. May be called from any thread, at any time."""
        with self._lock:
            if self._process is None or paused == self._paused:
                return
            self._paused = paused
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def _run(self, missing: Sequence[tuple[Recipe, Path]], idly: bool) -> None:
        with self._lock:
            if self._stopped:
                raise _cannot("it was stopped")
            self._paused = False
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUN],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,  # not a new session: Linux (autogroup) applies niceness only within a session
            )
        _, told = self._process.communicate(pickle.dumps(sys.path) + pickle.dumps((missing, idly, os.getpid())))
        with self._lock:
            code, self._process = self._process.returncode, None
        if code:
            lines = told.decode(errors="replace").strip().splitlines() or [f"its process ended with code {code}"]
            raise _cannot("it was stopped" if self._stopped else lines[-1])


def check_compiler() -> None:
    """Raises UnsupportedModel when torch finds no C++ compiler, or the compiler would find no Python."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # the compiler's modules take a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        reason = str(error).partition(":")[2].strip()
        raise UnsupportedModel(
            f"compile: torch finds no C++ compiler {reason}; install g++ or name one in CXX", param="compile"
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UnsupportedModel(
            "compile: this Python has no headers (Python.h); on Debian python3-dev has them", param="compile"
        )


def _cannot(reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"compile: the decoding step cannot be compiled: {reason}", param="compile")


def _loaded(path: Path) -> Compiled:
    with contextlib.suppress(OSError):  # the folder may be read-only, as in an image
        os.utime(path)  # evict the least recently used
    # Not through `torch._inductor`: importing the compiler takes seconds of Python's lock.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def run(arguments: list[Tensor]) -> Tensor:
        (result,) = loader.run(arguments)
        return result

    return run


def _prune(folder: Path) -> None:
    by_use = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime)
    for path in by_use[:-_KEPT]:
        path.unlink(missing_ok=True)


def _processor() -> str:
    """Identifies the processor, since compiled code uses all of its instructions."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"
