"""What the event loop tells the engine."""

from __future__ import annotations

from dataclasses import dataclass

from emorl_core.models.family import LaneModel
from emorl_core.types import Request


@dataclass(frozen=True, slots=True)
class Add:
    """One job's requests, or the next part of them."""

    job: int  # tells those of one worker apart
    groups: tuple[tuple[Request, ...], ...]
    client: str | None
    last: bool = True  # no more parts come


@dataclass(frozen=True, slots=True)
class Cancel:
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """From the engine's own side only: a model does not go from one process to another."""

    model: LaneModel


class Stop:
    pass


Command = Add | Cancel | Switch | Stop
