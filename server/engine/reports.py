"""What the engine tells the event loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from emorl_core.engine.stats import EngineStats
from emorl_core.errors import EmorlError
from emorl_core.frontend import Held
from emorl_core.types import Event
from server.engine.commands import Command


@dataclass(frozen=True, slots=True)
class Ready:
    """The warm-up has worked."""

    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Stepped:
    """One step of the engine."""

    stats: EngineStats
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """Events between two steps."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Restarting:
    """The engine failed and starts again."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last report. failed: what kind of error ended it; None: it was told to stop."""

    failed: str | None


Report = Ready | Stepped | Told | Restarting | Ended


# Between a process of its own and the one that serves, beside those:


@dataclass(frozen=True, slots=True)
class Holds:
    """What is held in memory: the first of all, once the bundle is loaded, and again whenever it changes."""

    held: Held


@dataclass(frozen=True, slots=True)
class Refused:
    """The bundle cannot be loaded."""

    error: EmorlError


@dataclass(frozen=True, slots=True)
class Logged:
    """A line for the log."""

    record: logging.LogRecord


Message = Report | Holds | Refused | Logged


class Link(Protocol):
    """Where an engine runs, as the event loop sees it."""

    def start(self, report: Callable[[Report], None]) -> None:
        """Warm up and serve. `report` is called on a thread of the link's own."""

    def send(self, command: Command) -> None:
        """Never waits; what is sent after the end is lost."""

    @property
    def alive(self) -> bool:
        """Whether it runs still."""

    def stalled_for_s(self) -> float:
        """Seconds that the step in progress has taken so far; 0 between steps."""

    def kill(self) -> bool:
        """End it at once, where that can be done. Whether it could."""
