"""Commands from the event loop to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from emorl_core.models.family import LaneModel
from emorl_core.types import Request


@dataclass(frozen=True, slots=True)
class Add:
    """One job's requests, or the next part of them."""

    job: int  # unique within one worker
    groups: tuple[tuple[Request, ...], ...]
    client: str | None
    last: bool = True  # whether this is the last part


@dataclass(frozen=True, slots=True)
class Cancel:
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """Sent only within the engine's process, since a model is not pickled."""

    model: LaneModel


class Stop:
    pass


Command = Add | Cancel | Switch | Stop
