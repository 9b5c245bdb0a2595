"""The events of the native API's streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from emorl_core.errors import EmorlError
from server.door.errors import error_object
from server.serving import sse


class TypedEvents(ABC):
    """The shared part of these dialects: no preamble, and a last event, `{"type": "done", …the answer…}` or `{"type":
    "error", …}`."""

    @abstractmethod
    def answer(self) -> dict[str, Any]:
        """The whole answer, once every completion has been taken."""

    def begin(self) -> bytes:
        return b""

    async def settle(self) -> None:  # noqa: B027 - most answers need nothing
        """Compute what the answer needs besides the completions."""

    def failed(self, error: EmorlError) -> bytes:
        return sse.data({"type": "error", "error": error_object(error)})

    def end(self) -> bytes:
        return sse.data({"type": "done", **self.answer()})
