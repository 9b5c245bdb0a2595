"""Shared by `POST /sweep/line` and `POST /sweep/map`: one engine request whose results are streamed as found and
returned as a whole."""

from __future__ import annotations

import asyncio
import secrets
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from fastapi import Request
from starlette.responses import Response

from emorl_core import types
from emorl_core.frontend import Frontend
from emorl_core.types import Completion, Event
from server.api.answers import json_response, service_of
from server.api.events import TypedEvents
from server.policy.door import Conversation
from server.serving import sse

R = TypeVar("R", bound=types.Request)
Asked = TypeVar("Asked", bound=types.Request, covariant=True)


class ExactBody(Protocol[Asked]):
    """A request's body."""

    @property
    def stream(self) -> bool: ...

    @property
    def said(self) -> Sequence[Conversation]: ...

    def to_core(
        self, ensemble: Frontend, request_id: str, *, max_new_tokens: int, max_sweep: int, time_limit_s: float
    ) -> Asked: ...


class ExactDialect(TypedEvents, Generic[R]):
    """One event for every result as it is found, then `{"type": "done", …the answer…}`."""

    def __init__(self, request: R, model: str, lanes: Sequence[str]) -> None:
        self.request, self.model, self.lanes = request, model, lanes
        self._done: Completion | None = None
        self._answer: dict[str, Any] = {}

    @abstractmethod
    def found(self, event: Event) -> dict[str, Any]:
        """The event for one result."""

    @abstractmethod
    def whole(self, completion: Completion) -> dict[str, Any]:
        """The answer. Built on another thread, since thousands of results take long to serialise."""

    def answer(self) -> dict[str, Any]:
        """Call it after `settle`."""
        return self._answer

    async def settle(self) -> None:
        assert self._done is not None  # every completion has been taken
        self._answer = await asyncio.to_thread(self.whole, self._done)

    def event(self, event: Event) -> bytes:
        if not isinstance(event, Completion):
            return sse.data(self.found(event))
        self._done = event
        return b""


async def answered(
    request: Request,
    body: ExactBody[R],
    kind: str,
    time_limit_s: float,
    dialect_of: Callable[[R, str, Sequence[str]], ExactDialect[R]],
) -> Response:
    """kind: prefix of the request id; time_limit_s: the server's limit. Raises as `Service.accept_built`."""
    service = service_of(request)
    settings = service.settings

    def build(ensemble: Frontend) -> R:
        return body.to_core(
            ensemble,
            f"{kind}-{secrets.token_hex(12)}",
            max_new_tokens=settings.max_new_tokens,
            max_sweep=settings.max_sweep,
            time_limit_s=time_limit_s,
        )

    generation, asked = await service.accept_built(request, lambda _: body.said, build, lambda asked: [asked])
    ensemble = generation.deployment.ensemble
    dialect = dialect_of(asked, ensemble.name, ensemble.lanes)
    if body.stream:
        return await sse.stream(generation, dialect, settings)
    (completion,) = await generation.finish()
    dialect.event(completion)
    await dialect.settle()
    return await asyncio.to_thread(lambda: json_response(dialect.answer()))
