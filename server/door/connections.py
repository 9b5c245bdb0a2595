"""The open connections of one server: what each waits for, how long it may, and which one goes when there is no room.

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

_OWN_DESCRIPTORS = 128  # of the process itself: bundle files, log, event loop, connections on their way in or out
_SPARE = 16  # beyond what the queue can hold, so that a probe always finds room
_USUAL = 1000
_TELL_EVERY_S = 60.0


class Phase(Enum):
    """What a connection waits for, in the order in which connections are closed when there are too many."""

    HEAD = "head"  # the rest of a request's head, or its first byte
    ANSWERED = "answered"  # the rest of a body, though the answer is out
    IDLE = "idle"  # the next request
    BODY = "body"  # the rest of a request's body
    UNREAD = "unread"  # a client that takes what is ready for it
    BUSY = "busy"  # this server: never cut


REASONS = ("full", *(phase.value for phase in Phase if phase is not Phase.BUSY))


class Connection(Protocol):
    """What this room needs of a connection."""

    def watch(self) -> None:
        """Start the time of its phase anew."""

    def let_go(self, reason: str) -> None:
        """Close it at once, whatever is unsent, and leave `Connections`."""


class Connections:
    """At most `most` of them. Time limits by phase are `settings`', until `hurry` shortens them."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingsError` when the limits contradict each other or the process's limit on open files."""
        self.most = most_connections(settings)
        self.cut = Counter[str]()  # reason -> connections that this server closed
        self._in: dict[Phase, dict[Connection, None]] = {phase: {} for phase in Phase}  # longest in the phase first
        self._timeouts: dict[Phase, float] = {
            Phase.HEAD: settings.head_timeout_s,
            Phase.ANSWERED: settings.read_timeout_s,
            Phase.IDLE: settings.idle_timeout_s,
            Phase.UNREAD: settings.write_timeout_s,
        }  # a body's time is kept where it is read, so that it ends with a status
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
        """Close connections until there is room: by order of phases, the longest in each phase first."""
        while len(self) + newcomers > self.most:
            if self.cut_one():
                self._tell()
            else:  # every client waits for this server
                self._changed.clear()
                await self._changed.wait()

    def cut_one(self) -> bool:
        """False: there is none that may be cut."""
        for phase, connections in self._in.items():
            if phase is not Phase.BUSY and connections:
                next(iter(connections)).let_go("full")
                return True
        return False

    def hurry(self, seconds: float) -> None:
        """Shorten every limit on waiting for a client to `seconds` from now."""
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
