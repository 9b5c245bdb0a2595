"""Drives an engine from the caller's own thread: what `Ensemble.generate`, `stream` and `sweep` stand on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from emorl_core.detokenize import Decode
from emorl_core.engine.engine import Engine
from emorl_core.engine.segments import LineResult, LineSweep
from emorl_core.engine.sequences import Job
from emorl_core.engine.sweep import SweepItem, SweepPlan, SweepResult
from emorl_core.types import Completion, Event, Failure, Request, TokenEvent
from emorl_core.weights import named


class Driver:
    """Steps the engine whenever somebody waits for an event and keeps the events of others. Threads take turns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.RLock()
        self._inbox: dict[str, deque[Event]] = {}

    def finish(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests to their ends, in one batch. Raises the error of the first that fails and cancels the others."""
        with self._turn:
            self._expect(request.request_id for request in requests)
            for request in requests:
                self._engine.add(request)
        try:
            return [self._completion(request.request_id) for request in requests]
        finally:
            self._forget(request.request_id for request in requests)

    def stream(self, request: Request) -> Iterator[TokenEvent]:
        """Token by token. The request joins the batch at the first `next`, so that an iterator which nobody reads costs
        nothing; closing it early cancels the request."""
        with self._turn:
            self._expect([request.request_id])
            self._engine.add(request)
        try:
            while isinstance(event := self._next(request.request_id), TokenEvent):
                yield event
        finally:
            self._forget([request.request_id])

    def sweep(self, plan: SweepPlan, on_item: Callable[[SweepItem], None] | None) -> SweepResult:
        """Run a sweep to its end; `on_item` is called as completions come, in the order they end."""
        groups = plan.groups()
        names = [request.request_id for group in groups for request in group]
        try:
            with self._turn:
                self._expect(names)
                job = Job()
                for group in groups:
                    self._engine.add_group(group, job)
            for completion in self._as_they_end(names):
                for item in plan.take(completion):
                    if on_item is not None:
                        on_item(item)
        finally:
            self._forget(names)
        return plan.result()

    def line(self, decode: Decode, start: Request, end: Request, *, min_width: float) -> LineResult:
        """All texts between two requests' weights, on a runner of its own."""
        engine = self._engine
        with self._turn:
            sweep = LineSweep(
                engine.runner.beside(), decode, start, end, slots=engine.scheduler.slots, min_width=min_width
            )
            while not sweep.done:
                sweep.step()
        return LineResult(
            named(engine.lanes, start.weights),
            named(engine.lanes, end.weights),
            sweep.intervals(),
            min_width,
            sweep.lane_row_steps,
        )

    def _completion(self, request_id: str) -> Completion:
        while not isinstance(event := self._next(request_id), Completion):
            pass
        return event

    def _as_they_end(self, names: Iterable[str]) -> Iterator[Completion]:
        """The completions of several requests, first come first. Raises the error of the first that fails."""
        left = dict.fromkeys(names)
        while left:
            with self._turn:
                # Another thread's turn may have brought some already.
                ended = [name for name in left if self._inbox[name]]
                if not ended:
                    self._step()
                    continue
            for name in ended:
                del left[name]
                yield self._completion(name)

    def _next(self, request_id: str) -> Event:
        """The request's next event, stepping the engine as long as there is none. Raises what a Failure carries."""
        with self._turn:
            inbox = self._inbox[request_id]
            while not inbox:
                self._step()
            event = inbox.popleft()
        if isinstance(event, Failure):
            raise event.error
        return event

    def _step(self) -> None:
        for event in self._engine.step():
            if event.request_id in self._inbox:
                self._inbox[event.request_id].append(event)

    def _expect(self, names: Iterable[str]) -> None:
        self._inbox.update((name, deque()) for name in names)

    def _forget(self, names: Iterable[str]) -> None:
        with self._turn:
            for name in names:
                if self._inbox.pop(name, None) is not None:
                    self._engine.cancel(name)
