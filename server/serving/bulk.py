"""Requests of many prompts are read one after the other, by one thread that gives way to the engine: reading thousands
of prompts is seconds of Python, and all helper threads at once would leave the engine little of it. See `resting`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.serving.resting import Resting

T = TypeVar("T")
Pause = Callable[[], None]
MANY = 16  # prompts, from which on they are read here
_PIECE_S = 0.002  # of work between two rests
_REST = 4.0  # times as long as the work before it


class Bulk:
    """One thread for long reading; its end does not wait for what is still read."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="emorl-bulk")

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, after everything that was handed in before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def pauses(busy: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Pause:
    """To be called often by the thread that works: it rests there while `busy`."""
    return Resting(busy, worth_s=_PIECE_S, times=_REST, sleep=sleep).rest
