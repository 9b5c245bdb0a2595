"""Bounds on what a client may send, checked while it arrives."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, error_response


class BodyLimitMiddleware:
    """413 for a body over `max_bytes`, whether its length is announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        text = f"the body is too large; allowed: {self._max_bytes} bytes (max_body_bytes)"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_bytes):
            # The body is not read; closing tells the client to stop sending it.
            await error_response(BodyTooLarge(text), headers={"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    # An HTTPException is the one kind that FastAPI lets through while it reads a body.
                    raise HTTPException(413, text, {"Connection": "close"})
            return message

        await self.app(scope, receive_counted, send)
