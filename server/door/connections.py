"""The open connections of one server: what each waits for, its time limit, and which is closed when there are too many.

Used from the event loop only.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from enum import Enum
from typing import Protocol

from server.settings import Settings, SettingsError

logger = logging.getLogger("emorl.server")

# file descriptors for the process itself: bundle files, log, event loop, connections being opened or closed
_OWN_DESCRIPTORS = 128
_SPARE = 16  # beyond the queue's capacity, so that a probe always finds room
_USUAL = 1000
_TELL_EVERY_S = 60.0


class Phase(Enum):
    """What a connection waits for; when there are too many, they are closed in this order."""

    HEAD = "head"  # the rest of a request's head, or its first byte
    ANSWERED = "answered"  # the rest of a body whose answer was already sent
    IDLE = "idle"  # the next request
    BODY = "body"  # the rest of a request's body
    UNREAD = "unread"  # the client to read the response
    BUSY = "busy"  # this server: never closed


REASONS = ("full", *(phase.value for phase in Phase if phase is not Phase.BUSY))


class Connection(Protocol):
    """The interface of a connection."""

    def watch(self) -> None:
        """Restart the timer of its phase."""

    def let_go(self, reason: str) -> None:
        """Close it at once, dropping unsent data, and leave `Connections`."""


class Connections:
    """At most `most` connections, with time limits per phase from `settings`, until `hurry` shortens them."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingsError` when the limits contradict each other or the process's limit on open files."""
        self.most = most_connections(settings)
        self.cut = Counter[str]()  # reason -> connections that this server closed
        self._in: dict[Phase, dict[Connection, None]] = {phase: {} for phase in Phase}  # the longest in the phase first
        self._timeouts: dict[Phase, float] = {
            Phase.HEAD: settings.head_timeout_s,
            Phase.ANSWERED: settings.read_timeout_s,
            Phase.IDLE: settings.idle_timeout_s,
            Phase.UNREAD: settings.write_timeout_s,
        }  # timed where the body is read, so that a timeout gets a status
        self._changed = asyncio.Event()
        self._told = -_TELL_EVERY_S

    def __len__(self) -> int:
        return sum(map(len, self._in.values()))

    def timeout_s(self, phase: Phase) -> float | None:
        return self._timeouts.get(phase)

    def moved(self, connection: Connection, before: Phase | None, after: Phase | None) -> None:
        """Record a change of phase. None: not open yet, or closed."""
        if before is not None:
            self._in[before].pop(connection, None)
        if after is not None:
            self._in[after][connection] = None
        if after is not Phase.BUSY:
            self._changed.set()

    async def make_room(self, newcomers: int) -> None:
        """Close connections until there is room: in the order of phases, the longest in each phase first."""
        while len(self) + newcomers > self.most:
            if self.cut_one():
                self._tell()
            else:  # all clients wait for this server
                self._changed.clear()
                await self._changed.wait()

    def cut_one(self) -> bool:
        """False if none may be closed."""
        for phase, connections in self._in.items():
            if phase is not Phase.BUSY and connections:
                next(iter(connections)).let_go("full")
                return True
        return False

    def hurry(self, seconds: float) -> None:
        """Shorten every time limit to `seconds` from now."""
        for phase in (Phase.BODY, Phase.UNREAD):
            self._timeouts[phase] = min(seconds, self._timeouts.get(phase, seconds))
            for connection in list(self._in[phase]):
                connection.watch()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            logger.warning("%d connections are open, as many as may be: the longest idle are closed", self.most)


def most_connections(settings: Settings) -> int:
    """How many connections may be open at once.

    Raises:
        SettingsError: fewer than the queue can hold, or more than the process may open.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = _USUAL**2 if files == resource.RLIM_INFINITY else files - _OWN_DESCRIPTORS
    needed = settings.slots + settings.max_queue + _SPARE
    if settings.max_connections is None:
        most, name = min(possible, max(_USUAL, 2 * needed)), "max_queue"
    else:
        most, name = settings.max_connections, "max_connections"
    if most > possible:
        raise SettingsError(
            f"max_connections is {most}; allowed: up to {possible}, as this process may open {files} files (ulimit -n)",
            param=name,
        )
    if most < needed:
        raise SettingsError(
            f"max_connections is {most}; slots, max_queue and {_SPARE} more for probes need {needed}: raise it "
            f"(this process may open {files} files, ulimit -n) or lower max_queue",
            param=name,
        )
    return most
