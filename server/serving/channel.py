"""The queue of one accepted request: events come from the engine's thread, one reader on the event loop takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from emorl_core.errors import EmorlError
from emorl_core.types import Completion, Event, Failure


class Channel:
    """Holds the events of one or several engine requests (the `n` choices of one answer).

    Everything here runs on the event loop; the worker hands events over with `call_soon_threadsafe`. The number of
    events is bounded by the requests' `max_new_tokens`, so a slow reader cannot make it grow without end.
    """

    def __init__(self, request_ids: Iterable[str]) -> None:
        self.open: set[str] = set(request_ids)  # ids whose last event has not come yet
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        return not self.open

    @property
    def empty(self) -> bool:
        return not self._events

    def peek(self) -> Event:
        """The oldest event; there must be one."""
        return self._events[0]

    def push(self, event: Event) -> None:
        """Add an event; what comes after a request's last event is dropped."""
        if event.request_id not in self.open:
            return
        if isinstance(event, (Completion, Failure)):
            self.open.discard(event.request_id)
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: EmorlError) -> list[str]:
        """End every open request with `error`; returns their ids."""
        ended = sorted(self.open)
        for request_id in ended:
            self.push(Failure(request_id, error))
        return ended

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is something to take; False when `timeout_s` passed first. One reader at a time."""
        if self._events:
            return True
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        # A timer that resolves the same future costs less per token than asyncio.wait_for, which wraps it in a task.
        timer = None if timeout_s is None else loop.call_later(timeout_s, _resolve, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        return bool(self._events)

    def take(self) -> list[Event]:
        """Everything that has come so far, oldest first."""
        events = list(self._events)
        self._events.clear()
        return events


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
