"""What the event loop tells the engine's thread."""

from __future__ import annotations

from dataclasses import dataclass

from emorl_core.models.family import LaneModel
from emorl_core.types import Request


@dataclass(frozen=True, slots=True)
class Add:
    groups: tuple[tuple[Request, ...], ...]
    client: str | None
    deadline: float  # time.monotonic() until which they may wait for a slot


@dataclass(frozen=True, slots=True)
class Cancel:
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    model: LaneModel


class Stop:
    pass


Command = Add | Cancel | Switch | Stop
