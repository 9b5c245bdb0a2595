"""Admission control: a permit for every accepted row, given before any tokenising.

A permit belongs to a request and its stream and is released exactly once, however they end. Used from the event loop
only, so there is no lock.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from emorl_core.errors import InvalidRequest
from server.door.errors import KeyLimit, QueueFull

MAX_RETRY_AFTER_S = 60


class Permit:
    """The right to keep `rows` rows in the engine or its queue. `release` may be called any number of times."""

    def __init__(self, admission: Admission, rows: int, key: str | None, now: float) -> None:
        self._admission = admission
        self.rows = rows
        self.key = key
        self.since = now
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._admission._returned(self)


class Admission:
    """Counts rows: `slots` that run plus `queue` that wait; what exceeds both is refused at once."""

    def __init__(
        self, slots: int, queue: int, per_key: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots = slots
        self.queue = queue
        self.per_key = per_key  # requests in progress per API key
        self.in_use = 0  # rows
        self._by_key: Counter[str] = Counter()
        self._clock = clock
        self._mean_held_s = 1.0  # durations of recent permits, from which Retry-After is estimated

    @property
    def limit(self) -> int:
        return self.slots + self.queue

    def acquire(self, rows: int = 1, key: str | None = None) -> Permit:
        """Raises:
        InvalidRequest: more rows than could ever be admitted.
        QueueFull, KeyLimit: try again later; both carry a Retry-After.
        """
        if rows > self.limit:
            raise InvalidRequest(
                f"the request asks for {rows} completions; allowed: at most {self.limit} at a time", param="n"
            )
        if key is not None and self.per_key is not None and self._by_key[key] >= self.per_key:
            raise KeyLimit(
                f"this API key already has {self.per_key} requests in progress, as many as it may",
                retry_after_s=self._retry_after_s(),
            )
        if self.in_use + rows > self.limit:
            raise QueueFull(
                f"all {self.slots} slots and {self.queue} places in the queue are taken; try again later",
                retry_after_s=self._retry_after_s(),
            )
        self.in_use += rows
        if key is not None:
            self._by_key[key] += 1
        return Permit(self, rows, key, self._clock())

    def _returned(self, permit: Permit) -> None:
        self.in_use -= permit.rows
        if permit.key is not None:
            self._by_key[permit.key] -= 1
            if not self._by_key[permit.key]:
                del self._by_key[permit.key]
        held_s = self._clock() - permit.since
        self._mean_held_s += 0.1 * (held_s - self._mean_held_s)

    def _retry_after_s(self) -> int:
        """Seconds until the queue has likely moved by one, rounded up."""
        waiting = max(1, self.in_use - self.slots)
        estimate = self._mean_held_s * waiting / max(1, self.slots)
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(estimate)))
