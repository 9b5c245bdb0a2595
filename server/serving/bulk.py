"""Requests with many prompts are tokenised one after the other, by one thread: thousands of prompts take seconds of
Python, and in all helper threads at once they would leave other requests little time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
MANY = 16  # from this number of prompts on, this thread is used


class Bulk:
    """One thread for long tokenising; shutdown does not wait for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="emorl-bulk")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, after all work submitted before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
