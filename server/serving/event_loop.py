"""The server's event loop, which gives way to the engine: see `resting`.

With crowds of clients that connect, send rubbish and leave it always has something to do. Those who ask much of it wait
longest for it, which is where the wait belongs.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable

from server.serving.resting import Resting

_WORTH_S = 0.0005
_TIMES = 1.5
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
        """See `Resting`."""
        super().__init__()
        self._busy = busy
        self._resting = Resting(busy, worth_s=_WORTH_S, times=_TIMES, longest_s=_LONGEST_S, clock=clock, sleep=sleep)
        self._last = -1  # descriptor that was told ready

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._resting.rest()
        ready = super().select(timeout)
        return self._next_few(ready) if len(ready) > _FEW and self._busy() else ready

    def _next_few(self, ready: list[tuple[selectors.SelectorKey, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """In turn by descriptor; the others are still ready at the next call."""
        ready.sort(key=lambda event: (event[0].fd <= self._last, event[0].fd))
        few = ready[:_FEW]
        self._last = few[-1][0].fd
        return few


def resting_loop(busy: Callable[[], bool]) -> asyncio.AbstractEventLoop:
    """busy: whether requests run."""
    return asyncio.SelectorEventLoop(RestingSelector(busy))
