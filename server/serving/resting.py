"""Threads that give way to the engine.

Python runs one thread at a time. The engine's thread gives the interpreter up at each of the hundreds of operations of
a step, and beside a thread that always has something to do it waits at each of them to get it back: every step of every
stream then takes several times as long. So threads that may have much to do rest after work while requests run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Resting:
    """Of one thread, which makes it and calls `rest` often."""

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        worth_s: float,
        times: float,
        longest_s: float = math.inf,
        clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """busy: whether requests run. worth_s: of work, before a rest; times: as long as the work before it.

        clock: the seconds of processor time that this thread has taken.
        """
        self._busy, self._worth_s, self._times, self._longest_s = busy, worth_s, times, longest_s
        self._clock, self._sleep = clock, sleep
        self._since = clock()

    def rest(self) -> None:
        worked = self._clock() - self._since
        if worked < self._worth_s:
            return
        if self._busy():
            self._sleep(min(worked * self._times, self._longest_s))
        self._since = self._clock()
