"""The event loop's side of the engine: sends requests as commands, and receives reports."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from itertools import groupby

from emorl_core.engine.stats import EngineStats
from emorl_core.errors import EmorlError
from emorl_core.types import Completion, Event, Failure, Request
from server.door.errors import EngineRestarted, NotReady, ShuttingDown
from server.engine.commands import Add, Cancel, Stop
from server.engine.reports import Ended, Link, Ready, Report, Restarting, Stepped, Told
from server.serving.channel import Channel

_POLL_S = 0.02


class Worker:
    """Passes requests to an engine, wherever it runs, and its events to channels. Runs on the event loop.

    `on_step` gets a step's stats; `on_orphan` the completion of a request whose reader is gone; `on_end` is called when
    the engine has failed for good, not when it was told to stop.
    """

    def __init__(
        self,
        link: Link,
        *,
        on_step: Callable[[EngineStats], None] = lambda _: None,
        on_orphan: Callable[[Completion], None] = lambda _: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.ready = False
        self.restarts = 0
        self.stats = EngineStats.none()  # at the last step
        self.failure: str | None = None  # the type of the error that ended the engine for good
        self.on_end = on_end
        self._link = link
        self._on_step = on_step
        self._on_orphan = on_orphan
        self._loop = asyncio.get_running_loop()
        self._channels: dict[str, Channel] = {}
        self._jobs = itertools.count()
        self._settled = asyncio.Event()  # set when ready, or failed for good
        self._stopping = False
        self._ended = False

    def start(self) -> None:
        self._link.start(self._post)

    async def settled(self) -> None:
        """Wait until the first warm-up has succeeded or the engine has failed (see `failure`)."""
        await self._settled.wait()

    @property
    def alive(self) -> bool:
        return self._link.alive

    @property
    def pending(self) -> int:
        """Requests submitted and not ended."""
        return len(self._channels)

    def stalled_for_s(self) -> float:
        """Seconds that the step in progress has taken so far; 0 between steps."""
        return self._link.stalled_for_s()

    def submit(self, requests: Sequence[Request], client: str | None = None) -> Channel:
        """Submit requests; consecutive ones with the same prompt form a group, which shares common prefixes.

        client: the caller, for fair sharing of slots. Raises `NotReady` when the engine has stopped.
        """
        if self._ended or self._stopping:
            raise NotReady("the engine has stopped")
        channel = Channel(request.request_id for request in requests)
        groups = tuple(tuple(group) for _, group in groupby(requests, key=lambda request: request.prompt_ids))
        self._link.send(Add(next(self._jobs), groups, client))
        for request in requests:
            self._channels[request.request_id] = channel
        return channel

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Cancel these requests at the next step and drop their channel; unknown ids are ignored."""
        for request_id in request_ids:
            self._channels.pop(request_id, None)
        if request_ids:
            self._link.send(Cancel(tuple(request_ids)))

    async def stop(self, timeout_s: float = 10.0) -> bool:
        """End every request with `ShuttingDown`, and stop the engine; False when a step does not return in time and
        cannot be killed."""
        self._stopping = True
        self._link.send(Stop())
        deadline = time.monotonic() + timeout_s
        while self._link.alive and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        ended = not self._link.alive or self._link.kill()
        if ended:
            await asyncio.sleep(0)  # its last reports
            self._hear(Ended(None))
        return ended

    def _post(self, report: Report) -> None:
        """Called on the link's thread."""
        try:
            self._loop.call_soon_threadsafe(self._hear, report)
        except RuntimeError:  # the loop is closed; nobody is left to notify
            self._link.send(Stop())

    def _hear(self, report: Report) -> None:
        if isinstance(report, Stepped):
            self.stats = report.stats
            self._on_step(report.stats)
            self._deliver(report.events)
        elif isinstance(report, Told):
            self._deliver(report.events)
        elif isinstance(report, Ready):
            self.ready = True
            self.stats = report.stats
            self._settled.set()
        elif isinstance(report, Restarting):
            self.ready = False
            self.restarts += 1
        elif isinstance(report, Ended) and not self._ended:
            self._end(report.failed)

    def _end(self, failed: str | None) -> None:
        """Fail all open requests, which were sent to an engine that is gone."""
        self._ended, self.ready = True, False
        error: EmorlError = ShuttingDown("the server is shutting down")
        if failed is not None:
            error = EngineRestarted("the engine failed and starts again; try again")
        self._deliver([Failure(request_id, error) for request_id in sorted(self._channels)])
        self._settled.set()
        if failed is not None:
            self.failure = failed
            self.on_end()

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            channel = self._channels.get(event.request_id)
            if channel is None:
                if isinstance(event, Completion):
                    self._on_orphan(event)
                continue
            channel.push(event)
            if isinstance(event, (Completion, Failure)):
                self._channels.pop(event.request_id, None)  # already dropped if the event limit was exceeded
