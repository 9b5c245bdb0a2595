"""One thread owns the engine; everything else talks to it through commands and channels.

The thread outlives any exception: what it cannot pin to one request fails every request inside the engine, with an
answer for each of them, and the engine starts again from the loaded weights.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from queue import Empty, SimpleQueue

from emorl_core.engine.engine import Engine
from emorl_core.engine.sequences import Job
from emorl_core.engine.stats import EngineStats
from emorl_core.errors import EmorlError, EngineError
from emorl_core.models.family import LaneModel
from emorl_core.types import Completion, Event, Failure, FinishReason, Request
from server.door.errors import EngineRestarted, NotReady, QueueTimeout, ShuttingDown
from server.serving.arriving import Arriving, Group, ids_of
from server.serving.channel import Channel
from server.serving.commands import Add, Cancel, Command, Stop, Switch
from server.serving.process import give_back_memory
from server.watch.logs import where

logger = logging.getLogger("emorl.worker")

_RESTARTS_IN_A_ROW = 3
_RESTART_PAUSE_S = 0.05
_POLL_S = 0.02
_REST_S = 1.0  # without a request, until the heap is trimmed


class Worker:
    """Runs `engine.step()` in a thread of its own and hands the events to channels on the event loop.

    `warm_up` runs on that thread first; `ready` is True once it has worked. `rebuild` gives a fresh engine over the
    weights that are already in memory. `on_step` runs on the engine's thread, with the seconds that the step took;
    `on_orphan` on the event loop, for the completion of a request whose reader has gone.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        warm_up: Callable[[], None],
        rebuild: Callable[[], Engine],
        on_step: Callable[[EngineStats, float], None] = lambda _, took_s: None,
        on_orphan: Callable[[Completion], None] = lambda _: None,
        queue_timeout_s: float = 30.0,
    ) -> None:
        self.ready = False
        self.restarts = 0
        self.stats = engine.stats  # as of the last step: the engine's own may change while it is read
        self.failure: BaseException | None = None  # why the thread has given up; it is gone for good then
        self._engine = engine
        self._warm_up = warm_up
        self._rebuild = rebuild
        self._on_step = on_step
        self._on_orphan = on_orphan
        self._queue_timeout_s = queue_timeout_s
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._channels: dict[str, Channel] = {}  # event loop only
        self._settled = asyncio.Event()  # event loop only: ready, or given up
        self._lock = threading.Lock()  # between a submit and the end of the thread
        self._accepting = True
        self._stopping = False
        self._step_started: float | None = None
        # Only the thread touches these:
        self._arriving = Arriving()  # taken from the commands, not handed to the engine yet
        self._unwanted: set[str] = set()  # cancelled while they arrived
        self._inside: set[str] = set()  # arriving or in the engine, last event not seen yet
        self._deadlines: deque[tuple[float, Job, list[str]]] = deque()
        self._timed_out: set[str] = set()
        self._faults_told = 0
        self._thread = threading.Thread(target=self._main, name="emorl-engine", daemon=True)

    # --- event loop side ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    async def settled(self) -> None:
        """Wait until the first warm-up has worked or the thread has given up (see `failure`)."""
        await self._settled.wait()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def pending(self) -> int:
        """Requests submitted and not ended, as the event loop sees it."""
        return len(self._channels)

    def stalled_for_s(self) -> float:
        """Seconds that the step in progress has taken so far; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def submit(self, requests: Sequence[Request], client: str | None = None) -> Channel:
        """Hand requests to the engine; neighbours with the same prompt are one group, which shares common prefixes.

        client: who asked; the engine shares its slots out between clients.
        """
        channel = Channel(request.request_id for request in requests)
        groups = tuple(tuple(group) for _, group in groupby(requests, key=lambda request: request.prompt_ids))
        command = Add(groups, client, time.monotonic() + self._queue_timeout_s)
        with self._lock:
            if not self._accepting:
                raise NotReady("the engine has stopped")
            self._commands.put(command)
        for request in requests:
            self._channels[request.request_id] = channel
        return channel

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Stop these requests at the next step and forget their channel; unknown ids are ignored."""
        for request_id in request_ids:
            self._channels.pop(request_id, None)
        if request_ids:
            self._commands.put(Cancel(tuple(request_ids)))

    def switch(self, model: LaneModel) -> None:
        """See `Engine.switch`; between two steps."""
        self._commands.put(Switch(model))

    async def stop(self, timeout_s: float = 10.0) -> bool:
        """End every request with `ShuttingDown` and the thread with them; False when a step does not return in time."""
        self._stopping = True
        self._commands.put(Stop())
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)  # a thread that joins could itself wait for one that is free
        return not self._thread.is_alive()

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            channel = self._channels.get(event.request_id)
            if channel is None:
                if isinstance(event, Completion):
                    self._on_orphan(event)
                continue
            channel.push(event)
            if isinstance(event, (Completion, Failure)):
                self._channels.pop(event.request_id, None)  # gone already where it was one event too many

    # --- engine side -------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        in_a_row = 0
        while True:
            try:
                self._warm_up()
                self.ready = True
                in_a_row = 0
                self._post(self._settled.set)
                self._serve()
                self._fail_inside(ShuttingDown("the server is shutting down"), last=True)
                return
            except BaseException as error:  # noqa: BLE001  the thread must survive any error: clients wait for it
                self._step_started = None
                was_ready, self.ready = self.ready, False
                in_a_row += 1
                logger.error("the engine's thread failed: %s", where(error))
                give_up = self._stopping or (not was_ready and not self.restarts) or in_a_row > _RESTARTS_IN_A_ROW
                self._fail_inside(EngineRestarted("the engine failed and starts again; try again"), last=give_up)
                if give_up:
                    self.failure = error
                    self._post(self._settled.set)
                    return
            self.restarts += 1
            time.sleep(_RESTART_PAUSE_S * 2**in_a_row)
            try:
                self._engine = self._rebuild()
                self.stats = self._engine.stats
            except BaseException as error:  # noqa: BLE001  counted and tried again above, through the warm-up
                logger.error("the engine cannot be rebuilt: %s", where(error))

    def _serve(self) -> None:
        """Commands in, steps, events out; returns when told to stop."""
        while self._obey(wait=not (len(self._arriving) or self._engine.has_work)):
            self._take_in()
            if not self._engine.has_work:
                continue
            self._expire()
            started = self._step_started = time.monotonic()
            events = self._engine.step()
            self._step_started = None
            stats = self._engine.stats
            self.stats = replace(stats, waiting=stats.waiting + len(self._arriving))
            self._on_step(self.stats, time.monotonic() - started)
            self._tell_faults()
            if events:
                self._post(self._deliver, [self._seen(event) for event in events])

    def _tell_faults(self) -> None:
        """Log faults that were retried individually: at the first, and then whenever their number has doubled."""
        faults = self.stats.faults
        if faults and faults >= 2 * self._faults_told:
            self._faults_told = faults
            cause = where(self._engine.last_fault)
            logger.warning("a step failed and was run again request by request, %d so far: %s", faults, cause)

    def _obey(self, *, wait: bool) -> bool:
        """Carry out every command that has come; with `wait`, wait for the first. False: stop."""
        try:
            command = self._next_command() if wait else self._commands.get_nowait()
            while True:
                if isinstance(command, Stop):
                    return False
                if isinstance(command, Add):
                    job = Job(command.client)  # one HTTP request counts once, however many prompts and choices it has
                    ids = ids_of(command.groups)
                    self._arriving.add(job, command.groups)
                    self._inside.update(ids)
                    self._deadlines.append((command.deadline, job, ids))
                elif isinstance(command, Switch):
                    self._engine.switch(command.model)
                else:
                    self._cancel(command.request_ids)
                command = self._commands.get_nowait()
        except Empty:
            return True

    def _next_command(self) -> Command:
        """Wait for it. What is not needed while nothing is asked goes back to the system."""
        try:
            return self._commands.get(timeout=_REST_S)
        except Empty:
            self._engine.rest()
            give_back_memory()
            return self._commands.get()

    def _cancel(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if request_id in self._arriving:
                self._unwanted.add(request_id)
            else:
                self._engine.cancel(request_id)

    def _take_in(self) -> None:
        waiting = self._engine.scheduler.waiting
        for job, group in self._arriving.take(lambda job: len(waiting.of(job))):
            self._add(group, job)

    def _add(self, group: Group, job: Job) -> None:
        ids = ids_of([group])
        try:
            self._engine.add_group(group, job)
        except Exception as error:  # noqa: BLE001  a request the engine will not take fails alone
            if isinstance(error, EmorlError):
                failure = error
            else:
                logger.error("a request could not be added: %s", where(error))
                failure = EngineError("the engine did not take this request")
            self._unwanted.difference_update(ids)
            self._post(self._deliver, [self._seen(Failure(request_id, failure)) for request_id in ids])
            return
        for request_id in self._unwanted.intersection(ids):
            self._unwanted.discard(request_id)
            self._engine.cancel(request_id)

    def _expire(self) -> None:
        """Cancel what has waited for a slot too long. The deadlines are in order: all may wait equally long."""
        now = time.monotonic()
        late: set[str] = set()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, job, ids = self._deadlines.popleft()
            late.update(ids)
            # The timeout is for jobs that have not started; what is left of a started job may wait longer.
            if not job.started:
                self._give_up(self._arriving.drop(job))
        if not self._inside.intersection(late):
            return
        fresh = [branch for branch in self._engine.scheduler.waiting if not branch.job.started]
        waiting = {member.request.request_id for branch in fresh for member in branch.members}
        for request_id in waiting.intersection(late):
            self._engine.cancel(request_id)
            self._timed_out.add(request_id)

    def _give_up(self, ids: Sequence[str]) -> None:
        """These have not reached the engine in time."""
        self._unwanted.difference_update(ids)
        if ids:
            self._post(self._deliver, [self._seen(Failure(each, QueueTimeout(self._too_late))) for each in ids])

    @property
    def _too_late(self) -> str:
        return f"no slot came free within {self._queue_timeout_s:g} seconds; try again later"

    def _seen(self, event: Event) -> Event:
        """Forget a request at its last event; a cancellation for a queue timeout becomes that error."""
        if not isinstance(event, (Completion, Failure)):
            return event
        self._inside.discard(event.request_id)
        if event.request_id in self._timed_out:
            self._timed_out.discard(event.request_id)
            if isinstance(event, Completion) and event.finish_reason is FinishReason.CANCELLED:
                return Failure(event.request_id, QueueTimeout(self._too_late))
        return event

    def _fail_inside(self, error: EmorlError, *, last: bool) -> None:
        """End everything the engine holds or was about to get. With `last`, nothing is accepted from now on."""
        with self._lock:
            self._accepting = self._accepting and not last
            ids = set(self._inside)
            commands: list[Command] = []
            while True:
                try:
                    commands.append(self._commands.get_nowait())
                except Empty:
                    break
        for command in commands:
            if isinstance(command, Add):
                ids.update(ids_of(command.groups))
            elif isinstance(command, (Switch, Stop)):
                self._commands.put(command)
        self._arriving.clear()
        self._unwanted.clear()
        self._inside.clear()
        self._deadlines.clear()
        self._timed_out.clear()
        if ids:
            self._post(self._deliver, [Failure(request_id, error) for request_id in sorted(ids)])

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            self._stopping = True
            self._commands.put(Stop())
