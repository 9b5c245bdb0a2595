"""uvicorn's connection, with bounds on what comes before a request is known, and the one error body for it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from emorl_core.errors import EmorlError
from server.door.errors import HeadersTooLarge, InvalidHttp, error_body, status_for


def guarded(read_timeout_s: float) -> type[H11Protocol]:
    """A protocol class for `uvicorn.Config`: who has begun a request and not sent the whole head of it within
    `read_timeout_s`, or opens a connection and sends nothing for as long as an idle one may stay, is let go. So
    connections that trickle cannot pile up."""

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _begun = False  # a head has begun and not ended

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._close_after(self.timeout_keep_alive)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            incomplete = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if incomplete == self._begun and (self._timer is None or incomplete):
                return
            self._begun = incomplete
            self._close_after(read_timeout_s if incomplete else None)

        def connection_lost(self, exc: Exception | None) -> None:
            self._close_after(None)
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text
            # uvicorn calls it for whatever h11 cannot read; only the limit on the head is told apart.
            limit = self.config.h11_max_incomplete_event_size or 0
            error: EmorlError = InvalidHttp("this is no HTTP request")
            if len(self.conn.trailing_data[0]) > limit:
                error = HeadersTooLarge(f"the headers are too large; allowed: {limit} bytes (max_header_bytes)")
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
                self._answer(status_for(error), error_body(error))
            self.transport.close()

        def _answer(self, status: int, body: bytes) -> None:
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")

        def _close_after(self, seconds: float | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.close)

    return Guarded
