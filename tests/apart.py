"""Work in a process of its own, which a test may kill, without the seconds that importing torch takes each time.

These processes are forked from one that has imported what most of them need, and has computed nothing.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tests.learn.killed_methods", "tests.learn.killed_evaluation", "training.pipeline.run"]
)


def started(work: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """`work`, a function of a module, begins. What it returns, if that is a number, is the process's exit code."""
    process = _CONTEXT.Process(target=_alone, args=(work, arguments), daemon=True)
    process.start()
    return process


def exit_code(work: Callable[..., object], *arguments: Any) -> int | None:
    """`started`, to its end. Minus a signal's number: it was killed."""
    process = started(work, *arguments)
    process.join()
    return process.exitcode


def _alone(work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    code = work(*arguments)
    sys.exit(code if isinstance(code, int) else 0)
