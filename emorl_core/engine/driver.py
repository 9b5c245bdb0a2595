"""Drives an engine from the caller's own thread: the loop behind `Ensemble`, training and the benchmarks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing

from emorl_core.engine.engine import Engine
from emorl_core.engine.regions import MapCompletion, MapRequest, MapResult
from emorl_core.engine.segments import SegmentsCompletion, SegmentsRequest, SegmentsResult
from emorl_core.engine.sequences import Job
from emorl_core.engine.sweep import SweepItem, SweepPlan, SweepResult
from emorl_core.types import Completion, Event, Failure, Request, TokenEvent
from emorl_core.weights import named


class Driver:
    """Steps the engine while a caller waits for an event, and queues the events of other callers. Thread-safe: threads
    take turns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.RLock()
        self._inboxes: dict[str, deque[Event]] = {}  # by request

    def events(
        self, groups: Iterable[Sequence[Request]], job: Job | None = None, *, at_once: int | None = None
    ) -> Generator[Event]:
        """Yield all events of these requests until all have ended; each group shares a prompt.

        They join the batch at the first `next`. Leaving the loop early cancels the rest.

        Args:
            job: the job that they count as when slots are shared out.
            at_once: the next group is taken only while fewer requests than this are in the engine; None: all at once.
        """
        inbox: deque[Event] = deque()
        waiting = iter(groups)
        left: set[str] = set()
        try:
            while True:
                with self._turn:
                    while (at_once is None or len(left) < at_once) and (group := next(waiting, None)) is not None:
                        names = [request.request_id for request in group]
                        self._inboxes.update(dict.fromkeys(names, inbox))
                        left.update(names)
                        self._engine.add_group(group, job)
                if not left:
                    return
                event = self._next(inbox)
                if isinstance(event, (Completion, Failure)):
                    left.discard(event.request_id)
                    self._inboxes.pop(event.request_id)
                yield event
        finally:
            self._forget(left)

    def ends(
        self, groups: Iterable[Sequence[Request]], job: Job | None = None, *, at_once: int | None = None
    ) -> Generator[Completion | Failure]:
        """The last event of each request, in the order they end; arguments as in `events`."""
        with closing(self.events(groups, job, at_once=at_once)) as events:
            yield from (event for event in events if isinstance(event, (Completion, Failure)))

    def finish(self, requests: Sequence[Request], *, together: bool = False) -> list[Completion]:
        """Run requests to completion in one batch. Raises the error of the first that fails, and cancels the others.

        together: they share a prompt, and their common prefix is computed once.
        """
        groups = [requests] if together else [[request] for request in requests]
        with closing(self.ends(groups)) as ends:
            done = {event.request_id: _sound(event) for event in ends}
        return [done[request.request_id] for request in requests]

    def stream(self, request: Request) -> Iterator[TokenEvent]:
        """Yield the request's tokens. Raises its error."""
        with closing(self.events([[request]])) as events:
            for event in events:
                if isinstance(event, TokenEvent):
                    yield event
                elif isinstance(event, Failure):
                    raise event.error

    def sweep(self, plan: SweepPlan, on_item: Callable[[SweepItem], None] | None) -> SweepResult:
        """Run a sweep to completion; `on_item` is called for completions in the order they end. Raises the error of the
        first that fails, and cancels the others."""
        with closing(self.ends(plan.groups(), Job())) as ends:
            for event in ends:
                for item in plan.take(_sound(event)):
                    if on_item is not None:
                        on_item(item)
        return plan.result()

    def segments(self, request: SegmentsRequest) -> SegmentsResult:
        """All texts between two requests' weights."""
        (done,) = self.finish([request])
        assert isinstance(done, SegmentsCompletion)  # the end of such a request
        return SegmentsResult(
            named(self._engine.lanes, request.weights),
            named(self._engine.lanes, request.to),
            done.intervals,
            request.min_width,
            done.lane_row_steps,
        )

    def map(self, request: MapRequest) -> MapResult:
        """All texts between three requests' weights."""
        (done,) = self.finish([request])
        assert isinstance(done, MapCompletion)  # the end of such a request
        return MapResult(
            tuple(named(self._engine.lanes, corner) for corner in request.corners),
            done.regions,
            done.why_not,
            request.resolution,
            request.min_width,
            done.lane_row_steps,
        )

    def _next(self, inbox: deque[Event]) -> Event:
        """The inbox's next event; steps the engine while it is empty (another thread may fill it meanwhile)."""
        with self._turn:
            while not inbox:
                for event in self._engine.step():
                    if event.request_id in self._inboxes:
                        self._inboxes[event.request_id].append(event)
            return inbox.popleft()

    def _forget(self, names: Iterable[str]) -> None:
        with self._turn:
            for name in names:
                del self._inboxes[name]
                self._engine.cancel(name)


def _sound(event: Completion | Failure) -> Completion:
    if isinstance(event, Failure):
        raise event.error
    return event
