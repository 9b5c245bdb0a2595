"""What `POST /sweep/line` and `POST /sweep/map` share: one request to the engine, told as it finds, and then whole."""

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
    """What a client asks."""

    @property
    def stream(self) -> bool: ...

    @property
    def said(self) -> Sequence[Conversation]: ...

    def to_core(
        self, ensemble: Frontend, request_id: str, *, max_new_tokens: int, max_sweep: int, time_limit_s: float
    ) -> Asked: ...


class ExactDialect(TypedEvents, Generic[R]):
    """One event for everything that is found, one last `{"type": "done", …the answer…}`."""

    def __init__(self, request: R, model: str, lanes: Sequence[str]) -> None:
        self.request, self.model, self.lanes = request, model, lanes
        self._done: Completion | None = None
        self._answer: dict[str, Any] = {}

    @abstractmethod
    def found(self, event: Event) -> dict[str, Any]:
        """What is told of one find."""

    @abstractmethod
    def whole(self, completion: Completion) -> dict[str, Any]:
        """The answer. On a thread of its own: thousands of finds take long to write."""

    def answer(self) -> dict[str, Any]:
        """Once it is settled."""
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
    """kind: what its id begins with; time_limit_s: the server's. Raises as `Service.accept_built`."""
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
