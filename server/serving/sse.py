"""Events -> bytes: server-sent events, and the response that sends them as they come."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from emorl_core.errors import EmorlError
from emorl_core.types import Failure
from server.door.errors import ClientGone, InternalError
from server.serving.generation import Generation
from server.settings import Settings
from server.watch.logs import where

logger = logging.getLogger("emorl.server")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def data(payload: dict[str, Any]) -> bytes:
    """One event. JSON contains no line breaks, so it fits one `data:` line."""
    return b"data: " + _encode_json(payload).encode("utf-8") + b"\n\n"


class Dialect(Protocol):
    """One API's stream format. Each method returns complete events, possibly none."""

    def begin(self) -> bytes: ...

    def event(self, event: Any) -> bytes: ...  # an event of the requests that the route submits

    async def settle(self) -> None: ...  # work before the last event, once all events have been seen

    def failed(self, error: EmorlError) -> bytes: ...

    def end(self) -> bytes: ...


async def chunks(generation: Generation, dialect: Dialect, keep_alive_s: float) -> AsyncIterator[bytes]:
    """The body of a stream. Events that accumulated while the last chunk was sent go out together."""
    begin = dialect.begin()
    while not generation.ended:
        if not await generation.wait(keep_alive_s):
            yield begin + KEEP_ALIVE
        else:
            events = generation.take()
            chunk = begin + b"".join(dialect.event(event) for event in events if not isinstance(event, Failure))
            if chunk:
                yield chunk
        begin = b""
    if generation.error is None:
        settled = asyncio.ensure_future(dialect.settle())
        try:
            while not (await asyncio.wait({settled}, timeout=keep_alive_s))[0]:
                yield KEEP_ALIVE
            await settled
        finally:
            settled.cancel()
    if isinstance(generation.error, ClientGone):
        return
    yield (dialect.end() if generation.error is None else dialect.failed(generation.error)) + DONE


async def stream(generation: Generation, dialect: Dialect, settings: Settings) -> EventStream:
    """The response as a stream, once the request has not failed at once.

    Raises the request's error when it fails before its first event, so that it gets an error status.
    """
    await generation.first_event(settings.keep_alive_s)
    return EventStream(generation, dialect, settings)


class EventStream(Response):
    """Sends `chunks` of a generation. The generation notices a disconnected client and ends the iteration; a client
    that does not read hits the slow-client timeout of its connection (`server.door.connections`)."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, dialect: Dialect, settings: Settings) -> None:
        self._generation = generation
        self._dialect = dialect
        self._keep_alive_s = settings.keep_alive_s
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(chunks(self._generation, self._dialect, self._keep_alive_s)) as body:  # type: ignore[type-var]
                async for chunk in body:
                    await write(chunk)
        except Exception as error:  # noqa: BLE001  the status is out: an error event is all that can still be said
            logger.error("a stream failed: %s", where(error))
            self._generation.error = InternalError("the server failed on this request")
            await write(self._dialect.failed(self._generation.error) + DONE)
        finally:
            self._generation.close()
        await write(b"", more=False)
