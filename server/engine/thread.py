"""One thread owns the engine; everything else talks to it through commands and reports.

The thread survives any exception: a fault that cannot be attributed to one request fails every request in the engine,
each with an answer, and the engine restarts from the loaded weights.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from emorl_core.engine.engine import Engine
from emorl_core.engine.sequences import Job
from emorl_core.engine.stats import EngineStats
from emorl_core.errors import EmorlError, EngineError
from emorl_core.types import Completion, Event, Failure, FinishReason
from server.door.errors import EngineRestarted, QueueTimeout, ShuttingDown
from server.engine.arriving import Arriving, Group, ids_of
from server.engine.clock import StepClock
from server.engine.commands import Add, Command, Stop, Switch
from server.engine.reports import Ended, Ready, Report, Restarting, Stepped, Told
from server.serving.process import give_back_memory
from server.watch.logs import where

logger = logging.getLogger("emorl.worker")

_RESTARTS_IN_A_ROW = 3
_RESTART_PAUSE_S = 0.05
_REST_S = 1.0  # idle time until the heap is trimmed


class EngineThread:
    """Runs `engine.step()` in its own thread. A `Link`.

    `warm_up` runs on that thread first. `rebuild` returns a fresh engine over the weights in memory.
    `on_step` runs on the engine's thread, with the seconds that the step took.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        warm_up: Callable[[], None],
        rebuild: Callable[[], Engine],
        on_step: Callable[[EngineStats, float], None] = lambda _, took_s: None,
        queue_timeout_s: float = 30.0,
        clock: StepClock | None = None,
    ) -> None:
        self._engine = engine
        self._warm_up = warm_up
        self._rebuild = rebuild
        self._on_step = on_step
        self._queue_timeout_s = queue_timeout_s
        self._report: Callable[[Report], None] = lambda _: None
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._clock = clock or StepClock.create()
        # Used by the thread only:
        self._stopping = False
        self._jobs: dict[int, Job] = {}  # jobs of which more parts will follow
        self._arriving = Arriving()  # received, not handed to the engine yet
        self._unwanted: set[str] = set()  # cancelled before all parts arrived
        self._inside: set[str] = set()  # arriving or in the engine, without their last event
        self._deadlines: deque[tuple[float, Job, list[str]]] = deque()
        self._timed_out: set[str] = set()
        self._faults_told = 0
        self._thread = threading.Thread(target=self._main, name="emorl-engine", daemon=True)

    # --- for others --------------------------------------------------------------------------------------------------

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        self._thread.start()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stalled_for_s(self) -> float:
        return self._clock.running_for_s()

    def kill(self) -> bool:
        """A thread cannot be ended from outside."""
        return False

    # --- on the thread -----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        in_a_row, restarts, was_ready = 0, 0, False
        while True:
            try:
                self._warm_up()
                was_ready = True
                in_a_row = 0
                self._report(Ready(self._engine.stats))
                self._serve()
                self._fail_inside(ShuttingDown("the server is shutting down"))
                self._report(Ended(None))
                return
            except BaseException as error:  # noqa: BLE001  the thread must survive any error: clients wait for it
                self._clock.end()
                was_ready, ready = False, was_ready
                in_a_row += 1
                logger.error("the engine's thread failed: %s", where(error))
                give_up = self._stopping or not (ready or restarts) or in_a_row > _RESTARTS_IN_A_ROW
                if not give_up:
                    self._report(Restarting())
                self._fail_inside(EngineRestarted("the engine failed and starts again; try again"))
                if give_up:
                    self._report(Ended(type(error).__name__))
                    return
            restarts += 1
            time.sleep(_RESTART_PAUSE_S * 2**in_a_row)
            try:
                self._engine = self._rebuild()
            except BaseException as error:  # noqa: BLE001  counted and tried again above, through the warm-up
                logger.error("the engine cannot be rebuilt: %s", where(error))

    def _serve(self) -> None:
        """The loop: receive commands, step, report. Returns when told to stop."""
        while self._obey(wait=not (len(self._arriving) or self._engine.has_work)):
            self._take_in()
            if not self._engine.has_work:
                continue
            self._expire()
            started = time.monotonic()
            self._clock.begin()
            events = self._engine.step()
            self._clock.end()
            took_s = time.monotonic() - started
            stats = self._engine.stats
            stats = replace(stats, waiting=stats.waiting + len(self._arriving))
            self._on_step(stats, took_s)
            self._tell_faults(stats)
            self._report(Stepped(stats, tuple(self._seen(event) for event in events)))

    def _tell_faults(self, stats: EngineStats) -> None:
        """Log faults whose requests were retried individually: the first, and then whenever their number has
        doubled."""
        if stats.faults and stats.faults >= 2 * self._faults_told:
            self._faults_told = stats.faults
            cause = where(self._engine.last_fault)
            logger.warning("a step failed and was run again request by request, %d so far: %s", stats.faults, cause)

    def _obey(self, *, wait: bool) -> bool:
        """Carry out all received commands; with `wait`, wait for the first. Returns False for stop."""
        try:
            command = self._next_command() if wait else self._commands.get_nowait()
            while True:
                if isinstance(command, Stop):
                    self._stopping = True
                    return False
                if isinstance(command, Add):
                    self._arrive(command)
                elif isinstance(command, Switch):
                    self._engine.switch(command.model)
                else:
                    self._cancel(command.request_ids)
                command = self._commands.get_nowait()
        except Empty:
            return True

    def _next_command(self) -> Command:
        """Wait for a command. When idle, memory that is not needed is returned to the system."""
        try:
            return self._commands.get(timeout=_REST_S)
        except Empty:
            self._engine.rest()
            give_back_memory()
            return self._commands.get()

    def _arrive(self, command: Add) -> None:
        # One HTTP request counts once, however many prompts and choices it has.
        job = self._jobs.pop(command.job, None) or Job(command.client)
        if not command.last:
            self._jobs[command.job] = job
        ids = ids_of(command.groups)
        self._arriving.add(job, command.groups)
        self._inside.update(ids)
        self._deadlines.append((time.monotonic() + self._queue_timeout_s, job, ids))

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
            self._fail(ids, failure)
            return
        for request_id in self._unwanted.intersection(ids):
            self._unwanted.discard(request_id)
            self._engine.cancel(request_id)

    def _expire(self) -> None:
        """Cancel requests that have waited too long for a slot. Deadlines are in order, since the timeout is the same
        for all."""
        now = time.monotonic()
        late: set[str] = set()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, job, ids = self._deadlines.popleft()
            late.update(ids)
            # The timeout applies to jobs that have not started; the rest of a started job may wait longer.
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
        """These did not reach the engine in time."""
        self._unwanted.difference_update(ids)
        self._fail(ids, self._too_late())

    def _too_late(self) -> QueueTimeout:
        return QueueTimeout(f"no slot came free within {self._queue_timeout_s:g} seconds; try again later")

    def _seen(self, event: Event) -> Event:
        """Drop a request at its last event; a cancellation for a queue timeout becomes that error."""
        if not isinstance(event, (Completion, Failure)):
            return event
        self._inside.discard(event.request_id)
        if event.request_id in self._timed_out:
            self._timed_out.discard(event.request_id)
            if isinstance(event, Completion) and event.finish_reason is FinishReason.CANCELLED:
                return Failure(event.request_id, self._too_late())
        return event

    def _fail(self, ids: Sequence[str], error: EmorlError) -> None:
        if ids:
            self._report(Told(tuple(self._seen(Failure(request_id, error)) for request_id in ids)))

    def _fail_inside(self, error: EmorlError) -> None:
        """End all requests in the engine or on their way to it."""
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
        self._jobs.clear()
        self._arriving.clear()
        self._unwanted.clear()
        self._inside.clear()
        self._deadlines.clear()
        self._timed_out.clear()
        self._fail(sorted(ids), error)
