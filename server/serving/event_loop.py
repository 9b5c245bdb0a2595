"""An event loop that gives way to the engine.

Python runs one thread at a time. The engine's thread gives the interpreter up at each of the hundreds of operations of
a step, and beside an event loop that always has something to do (many clients that connect, send rubbish, leave) it
waits at each of them to get it back: every step of every stream then takes several times as long. So the loop rests
after work while requests run. Those who ask much of it wait longest for it, which is where the wait belongs.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable

_WORTH_S = 0.0005  # of work, before a rest
_REST = 1.5  # times as long as the work before it
_LONGEST_S = 0.02  # probes and tokens wait meanwhile
_FEW = 8  # descriptors told ready at once: tokens wait until the work for all of them is done


class RestingSelector(selectors.DefaultSelector):
    """The loop asks its selector for events whenever it has worked off those before; here it rests first."""

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """busy: whether requests run. clock: the seconds of processor time that this thread has taken."""
        super().__init__()
        self._busy, self._clock, self._sleep = busy, clock, sleep
        self._rested = clock()
        self._last = -1  # descriptor that was told ready

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        busy = self._busy()
        worked = self._clock() - self._rested
        if worked >= _WORTH_S:
            if busy:
                self._sleep(min(worked * _REST, _LONGEST_S))
            self._rested = self._clock()
        ready = super().select(timeout)
        return self._next_few(ready) if busy and len(ready) > _FEW else ready

    def _next_few(self, ready: list[tuple[selectors.SelectorKey, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """In turn by descriptor; the others are still ready at the next call."""
        ready.sort(key=lambda event: (event[0].fd <= self._last, event[0].fd))
        few = ready[:_FEW]
        self._last = few[-1][0].fd
        return few


def resting_loop(busy: Callable[[], bool]) -> asyncio.AbstractEventLoop:
    """busy: see `RestingSelector`."""
    return asyncio.SelectorEventLoop(RestingSelector(busy))
