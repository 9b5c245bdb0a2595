"""Bounds on the size of a request and the time to send it, checked while it arrives."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.door.errors import BodyTooLarge, HeadersTooLarge, error_response

_CLOSE = {"Connection": "close"}  # the rest of the request is not read; this tells the client to stop sending


class LimitMiddleware:
    """431 for headers over `max_header_bytes`, 413 for a body over `max_body_bytes`, whether announced or not, 408 for
    one that takes longer than `read_timeout_s`."""

    def __init__(self, app: ASGIApp, max_header_bytes: int, max_body_bytes: int, read_timeout_s: float) -> None:
        self.app = app
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._read_timeout_s = read_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The connection refuses a head that exceeds the limit while it arrives; one that arrived at once is checked
        # here.
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._max_header_bytes:
            error = HeadersTooLarge(
                f"the headers are too large; allowed: {self._max_header_bytes} bytes (max_header_bytes)"
            )
            await error_response(error, headers=_CLOSE)(scope, receive, send)
            return
        text = f"the body is too large; allowed: {self._max_body_bytes} bytes (max_body_bytes)"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_body_bytes):
            await error_response(BodyTooLarge(text), headers=_CLOSE)(scope, receive, send)
            return
        received = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._read_timeout_s

        async def receive_counted() -> Message:
            nonlocal received, complete
            if complete:  # only a disconnect can follow, which has no time limit
                return await receive()
            # An HTTPException is the one kind that FastAPI lets through while it reads a body.
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not come within {self._read_timeout_s:g} seconds (read_timeout_s)"
                raise HTTPException(408, late, _CLOSE) from None
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(413, text, _CLOSE)
            return message

        await self.app(scope, receive_counted, send)
