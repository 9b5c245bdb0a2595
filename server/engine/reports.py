"""Reports from the engine to the event loop."""

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
    """The engine failed and is restarting."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last report. failed: the type of the error that ended it; None: it was told to stop."""

    failed: str | None


Report = Ready | Stepped | Told | Restarting | Ended


# Further messages from the engine's process to the serving process:


@dataclass(frozen=True, slots=True)
class Holds:
    """Describes the loaded model: the first message once the bundle is loaded, and again after every change."""

    held: Held


@dataclass(frozen=True, slots=True)
class Refused:
    """The bundle cannot be loaded."""

    error: EmorlError


@dataclass(frozen=True, slots=True)
class Logged:
    """A log record."""

    record: logging.LogRecord


Message = Report | Holds | Refused | Logged


class Link(Protocol):
    """The event loop's connection to an engine."""

    def start(self, report: Callable[[Report], None]) -> None:
        """Warm up and serve. `report` is called on the link's own thread."""

    def send(self, command: Command) -> None:
        """Never blocks; commands sent after the end are dropped."""

    @property
    def alive(self) -> bool:
        """Whether it is still running."""

    def stalled_for_s(self) -> float:
        """Seconds that the step in progress has taken so far; 0 between steps."""

    def kill(self) -> bool:
        """Kill it if possible; returns whether it could."""
