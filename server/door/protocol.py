"""uvicorn's connection, with limits on how long it waits for its client, and the common error body for malformed
requests."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from emorl_core.errors import EmorlError
from server.door.connections import Connections, Phase
from server.door.errors import HeadersTooLarge, InvalidHttp, error_body, status_for

_PROGRESS = 64 * 1024  # bytes that a client must read within the slow-client timeout, unless less is ready
_FIRST_WORD_S = 0.05  # after `shutdown` uvicorn waits twice as long in any case


def guarded(connections: Connections) -> type[H11Protocol]:
    """A protocol class for `uvicorn.Config`. Every connection is in one phase of `connections` at a time and is closed
    when it exceeds that phase's limit, so that silent, slow and unread connections cannot pile up."""

    class Guarded(H11Protocol):
        _phase: Phase | None = None
        _gone = False
        _timer: asyncio.TimerHandle | None = None
        _unsent = 0  # unread bytes when the timer started

        # --- what happens to it --------------------------------------------------------------------------------------

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # report unsent bytes as soon as the kernel's buffer is full
            self._settle()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._settle()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._unset_keepalive_if_required()  # this class applies `idle_timeout_s` itself
            self._settle()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._settle()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._settle()

        def connection_lost(self, exc: Exception | None) -> None:
            self._leave()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            """The server is shutting down. A client whose request has not been read yet would see a reset instead of an
            answer if the connection were closed with unread bytes."""
            if self._phase is Phase.HEAD:
                self.loop.call_later(_FIRST_WORD_S, self._end)
            else:
                super().shutdown()

        def _end(self) -> None:
            if not self.transport.is_closing():
                super().shutdown()

        # --- what it waits for ---------------------------------------------------------------------------------------

        def _settle(self) -> None:
            phase = self._waits_for()
            if phase is not self._phase and not self._gone:
                connections.moved(self, self._phase, phase)
                self._phase = phase
                self.watch()

        def _waits_for(self) -> Phase:
            if self.flow.write_paused:
                return Phase.UNREAD
            cycle: RequestResponseCycle | None = self.cycle  # typed as always present by uvicorn
            if cycle is None:
                return Phase.HEAD
            if not cycle.response_complete:
                return Phase.BODY if cycle.more_body else Phase.BUSY
            if self.conn.their_state is not h11.IDLE:
                return Phase.ANSWERED
            return Phase.HEAD if self.conn.trailing_data[0] else Phase.IDLE

        def watch(self) -> None:
            """Restart the timer of its phase."""
            if self._timer is not None:
                self._timer.cancel()
            seconds = None if self._phase is None else connections.timeout_s(self._phase)
            self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)
            self._unsent = self.transport.get_write_buffer_size()

        def _late(self) -> None:
            assert self._phase is not None
            taken = self._unsent - self.transport.get_write_buffer_size()
            if self._phase is Phase.UNREAD and taken >= _PROGRESS:
                self.watch()
            else:
                self.let_go(self._phase.value)

        def let_go(self, reason: str) -> None:
            """Close it at once, dropping unsent data."""
            connections.cut[reason] += 1
            self._leave()
            self.transport.abort()

        def _leave(self) -> None:
            if not self._gone:
                connections.moved(self, self._phase, None)
            self._gone, self._phase = True, None
            self.watch()

        # --- what is no request --------------------------------------------------------------------------------------

        def _unsupported_upgrade_warning(self) -> None:
            """Unsupported upgrades are ignored (RFC 9110, 7.8); uvicorn would log two lines each, API key or not."""

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text
            # Called by uvicorn for anything that h11 cannot parse; only the limit on the head is distinguished.
            limit = self.config.h11_max_incomplete_event_size or 0
            error: EmorlError = InvalidHttp("this is no HTTP request")
            if len(self.conn.trailing_data[0]) > limit:
                error = HeadersTooLarge(f"the headers are too large; allowed: {limit} bytes (max_header_bytes)")
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has started
                self._answer(status_for(error), error_body(error))
            if self.cycle is not None and not self.cycle.response_complete:  # a head was read before this
                self.cycle.disconnected = True  # too late for any answer
                self.cycle.message_event.set()
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

    return Guarded
