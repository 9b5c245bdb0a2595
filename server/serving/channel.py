"""The event queue of one accepted request: written by the engine, read by one reader on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from emorl_core.errors import EmorlError
from emorl_core.types import Completion, Event, Failure

_AT_ONCE = 256  # a sweep may get thousands of completions in one step, and each costs its reader some work


class Unread:
    """The number of unread events in all channels. `on_full` is called for every one beyond `most`, to make room."""

    def __init__(self, most: int, on_full: Callable[[], None]) -> None:
        self.count = 0
        self._most = most
        self._on_full = on_full

    def add(self, events: int) -> None:
        self.count += events
        if self.count > self._most:
            self._on_full()


class Channel:
    """Holds the events of one or several engine requests (the `n` choices of one answer).

    Everything here runs on the event loop; the worker passes events with `call_soon_threadsafe`. Unread events are
    bounded by the requests' `max_new_tokens`, and over all channels by `count_in`.
    """

    def __init__(self, request_ids: Iterable[str]) -> None:
        self._ids = tuple(request_ids)
        self.open: set[str] = set(self._ids)  # ids without their last event
        self.on_finished: Callable[[], None] = lambda: None  # whether all last events have arrived, read or not
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._unread: Unread | None = None

    def count_in(self, unread: Unread) -> None:
        """Whether no event has arrived yet."""
        self._unread = unread

    def __len__(self) -> int:
        """Number of unread events."""
        return len(self._events)

    @property
    def finished(self) -> bool:
        return not self.open

    def peek(self) -> Event:
        """The oldest event; there must be one."""
        return self._events[0]

    def push(self, event: Event) -> None:
        """Add an event; events after a request's last one are dropped."""
        if event.request_id not in self.open:
            return
        if isinstance(event, (Completion, Failure)):
            self.open.discard(event.request_id)
        self._append(event)
        if not self.open:
            self.on_finished()

    def _append(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._unread is not None:
            self._unread.add(1)

    def fail(self, error: EmorlError) -> list[str]:
        """End every open request with `error`; returns their ids."""
        ended = sorted(self.open)
        for request_id in ended:
            self.push(Failure(request_id, error))
        return ended

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for an event; False when `timeout_s` passed first. One reader at a time."""
        if self._events:
            await asyncio.sleep(0)  # yield to other readers even when events are available
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

    def take(self, most: int = _AT_ONCE) -> list[Event]:
        """Take up to `most` events, oldest first."""
        events = [self._events.popleft() for _ in range(min(most, len(self._events)))]
        if self._unread is not None:
            self._unread.add(-len(events))
        return events

    def drop(self) -> None:
        """Drop all unread events."""
        if self._unread is not None:
            self._unread.add(-len(self._events))
        self._events.clear()

    def give_up(self, error: EmorlError) -> list[str]:
        """Drop all unread events; the reader gets `error` instead. Returns the ids that were open."""
        ended = sorted(self.open)
        self.open.clear()
        self.drop()
        self._append(Failure(self._ids[0], error))
        if ended:
            self.on_finished()
        return ended


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
