"""Requests of many prompts are read one after the other, by one thread: reading thousands of prompts is seconds of
Python, and all helper threads at once would leave little of it to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
MANY = 16  # prompts, from which on they are read here


class Bulk:
    """One thread for long reading; its end does not wait for what is still read."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="emorl-bulk")

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, after everything that was handed in before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
