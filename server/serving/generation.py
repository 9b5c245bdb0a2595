"""One accepted request, from its permit to the last byte. It is closed exactly once, however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import Receive

from emorl_core.engine.exact import ExactCompletion
from emorl_core.errors import EmorlError
from emorl_core.types import Completion, Event, Failure, FinishReason, Request, TokenEvent
from server.door.admission import Permit
from server.door.errors import ClientGone, ClientTooSlow, QueueTimeout, ShuttingDown
from server.serving.channel import Unread
from server.watch.metrics import Metrics

if TYPE_CHECKING:
    from server.serving.deployment import Deployment


class Generation:
    """The engine requests behind one HTTP answer (several for `n` choices), their channel and their permit.

    The permit is released when the engine is done with them, even if the answer has not been read yet.
    """

    def __init__(
        self,
        deployment: Deployment,
        requests: Sequence[Request],
        permit: Permit,
        metrics: Metrics,
        unread: Unread,
        on_close: Callable[[Generation], None] = lambda _: None,
    ) -> None:
        """Submits the requests to the engine. Raises `NotReady` when it has stopped; the caller then still owns the
        permit."""
        self.deployment = deployment
        self.requests = tuple(requests)
        self.completions: dict[str, Completion] = {}
        self.error: EmorlError | None = None
        self.accepted = int(time.time())  # Unix time
        self.began = time.perf_counter()
        self.tokens = 0  # completion tokens seen, for the access log
        self._channel = deployment.worker.submit(self.requests, permit.key)
        self._channel.on_finished = permit.release  # the engine is done, even if the client still reads
        self._channel.count_in(unread)
        self._metrics = metrics
        self._on_close = on_close
        self._last_token: dict[str, float] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    # --- the client ------------------------------------------------------------------------------------------------

    def watch(self, receive: Receive) -> None:
        """Cancel everything at the next step if the client disconnects; the body must have been read."""
        self._watcher = asyncio.create_task(self._watch(receive), name="emorl-watch-client")

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientGone("the client went away"))

    def fail(self, error: EmorlError) -> None:
        """End open requests with `error` and cancel them in the engine at its next step."""
        self.deployment.worker.cancel(self._channel.fail(error))

    def fall_behind(self) -> None:
        """Drop the unread events and cancel the rest."""
        error = ClientTooSlow("the client read too slowly, and too many events waited for it (max_unread_events)")
        self.deployment.worker.cancel(self._channel.give_up(error))

    # --- the events ------------------------------------------------------------------------------------------------

    async def first_event(self, timeout_s: float) -> None:
        """Wait for the first event, so that a request that fails at once gets an error status instead of a stream.

        Raises the request's error if that is the first event; returns after `timeout_s` in any case.
        """
        if await self._channel.wait(timeout_s):
            event = self._channel.peek()
            if isinstance(event, Failure):
                self.take()
                raise event.error

    async def wait(self, timeout_s: float | None) -> bool:
        """Wait for events; False when none arrived within `timeout_s`."""
        return await self._channel.wait(timeout_s)

    @property
    def unread(self) -> int:
        """Number of unread events."""
        return len(self._channel)

    @property
    def ended(self) -> bool:
        """Whether all events have been read, or one choice failed, which ends the whole answer."""
        return self.error is not None or (self._channel.finished and not self._channel)

    def take(self) -> list[Event]:
        """Take the unread events, and count them in metrics and log facts."""
        events = self._channel.take()
        for event in events:
            if isinstance(event, TokenEvent):
                self._token(event)
            elif isinstance(event, Completion):
                self.completions[event.request_id] = event
                self.tokens += event.completion_tokens
                # Texts of segments and maps share tokens, so they have no inter-token times to observe.
                streamed = event.request_id in self._last_token or isinstance(event, ExactCompletion)
                self._metrics.completed(event, self.deployment.ensemble.lanes, streamed=streamed)
            elif isinstance(event, Failure) and self.error is None:
                self.error = event.error
        return events

    def _token(self, event: TokenEvent) -> None:
        now = time.perf_counter()
        last = self._last_token.get(event.request_id)
        if last is not None:
            self._metrics.inter_token.observe(now - last)
        self._last_token[event.request_id] = now

    async def finish(self) -> list[Completion]:
        """Wait for all completions, in the order of the requests; raises the first error."""
        while not self.ended:
            await self.wait(None)
            self.take()
        if self.error is not None:
            raise self.error
        return [self.completions[request.request_id] for request in self.requests]

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what is still running and drop unread events. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        self.fail(ClientGone("the answer was given up"))
        self._channel.drop()
        self._on_close(self)

    @property
    def outcome(self) -> str:
        """The outcome label of `emorl_requests_total`; for several choices, the worst."""
        if isinstance(self.error, (QueueTimeout,)):
            return "rejected"
        if isinstance(self.error, (ClientGone, ClientTooSlow, ShuttingDown)):
            return "cancelled"
        if self.error is not None:
            return "error"
        if len(self.completions) < len(self.requests):
            return "cancelled"
        reasons = {completion.finish_reason for completion in self.completions.values()}
        for reason in (FinishReason.CANCELLED, FinishReason.LENGTH):
            if reason in reasons:
                return reason.value
        return FinishReason.STOP.value
