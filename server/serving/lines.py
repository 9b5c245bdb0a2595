"""Lines on the engine's thread: the exact line between two weight vectors, one interval after another.

A line has lane rows of its own beside the engine's, so it takes nobody's slot. Between two steps of the engine it goes
one token further. One line runs at a time; the others wait their turn, as requests wait for a slot.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field

from emorl_core.detokenize import Decode
from emorl_core.engine.engine import Engine
from emorl_core.engine.segments import Interval, LineSweep
from emorl_core.errors import EmorlError, EngineError, InvalidRequest
from emorl_core.types import Completion, Event, Failure, FinishReason, Request
from emorl_core.weights import named
from server.watch.logs import where

logger = logging.getLogger("emorl.worker")

# Intervals that run at once. More would lengthen every step, also for those who stream beside the line.
_ROWS = 4


@dataclass(frozen=True, slots=True)
class LineRequest(Request):
    """A request for every greedy text between its own weights and those of `to`, which shares all the rest.

    `decode`: token ids -> text; `min_width`: narrower intervals are not divided; `most`: intervals, else it fails.
    """

    to: tuple[float, ...] = ()
    decode: Decode = field(default=lambda ids: "")
    min_width: float = 1e-7
    most: int = 1


@dataclass(frozen=True, slots=True)
class IntervalFound:
    """One more interval; a neighbour with the same tokens may come later and become one with it."""

    request_id: str
    interval: Interval


@dataclass(frozen=True, slots=True)
class LineCompletion(Completion):
    """The end of a line. `weights` are those in its middle; `intervals` in rising order, empty when cancelled."""

    intervals: tuple[Interval, ...] = ()

    @property
    def completion_tokens(self) -> int:
        """Of all its texts together, as a sweep counts them."""
        return sum(len(interval.token_ids) for interval in self.intervals)


LineEvent = Event | IntervalFound


@dataclass(slots=True, eq=False)
class _Line:
    request: LineRequest
    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    told: int = 0  # intervals that events were made of
    sweep: LineSweep | None = None


class Lines:
    """Only the engine's thread calls this."""

    def __init__(self) -> None:
        self._queue: deque[_Line] = deque()  # the first one runs
        self._cancelled: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self._queue)

    @property
    def running(self) -> int:
        return sum(line.sweep is not None for line in self._queue)

    @property
    def waiting(self) -> set[str]:
        """Ids of those whose turn has not come."""
        return {line.request.request_id for line in self._queue if line.sweep is None}

    def add(self, request: LineRequest) -> None:
        self._queue.append(_Line(request))

    def cancel(self, request_id: str) -> None:
        """Takes effect at the next step; unknown ids are ignored."""
        if any(line.request.request_id == request_id for line in self._queue):
            self._cancelled.add(request_id)

    def clear(self) -> None:
        """Forget all of them; the worker tells their readers."""
        self._queue.clear()
        self._cancelled.clear()

    def step(self, engine: Engine) -> list[LineEvent]:
        """One token for every running interval of the first line. It fails alone, whatever happens to it."""
        events: list[LineEvent] = []
        for line in [line for line in self._queue if line.request.request_id in self._cancelled]:
            self._queue.remove(line)
            events.append(_completion(line, engine, FinishReason.CANCELLED))
        self._cancelled.clear()
        if not self._queue:
            return events
        line = self._queue[0]
        try:
            sweep = _advance(line, engine)
        except Exception as error:  # noqa: BLE001  whatever it is, it must not reach the engine's requests
            self._queue.popleft()
            if not isinstance(error, EmorlError):
                logger.error("a line failed: %s", where(error))
                error = EngineError("the engine failed on this request")
            return [*events, Failure(line.request.request_id, error)]
        events += [IntervalFound(line.request.request_id, each) for each in sweep.ended[line.told :]]
        line.told = len(sweep.ended)
        if sweep.done:
            self._queue.popleft()
            events.append(_completion(line, engine, FinishReason.STOP))
        return events


def _advance(line: _Line, engine: Engine) -> LineSweep:
    request = line.request
    if line.sweep is None:
        line.started = time.perf_counter()
        end = Request(request.request_id, request.prompt_ids, request.to, request.sampling)
        # On a runner of its own, over the prompts that the engine has encoded already.
        line.sweep = LineSweep(
            engine.runner.beside(),
            request.decode,
            request,
            end,
            slots=min(_ROWS, engine.scheduler.slots),
            min_width=request.min_width,
        )
    line.sweep.step()
    line.first_token = line.first_token or time.perf_counter()
    if line.sweep.size > request.most:
        raise InvalidRequest(
            f"the line has more than {request.most} intervals; allowed: up to that many (max_sweep, a setting of this"
            " server); ask for fewer tokens or weights that are closer",
            param="max_new_tokens",
        )
    return line.sweep


def _completion(line: _Line, engine: Engine, reason: FinishReason) -> LineCompletion:
    request, now = line.request, time.perf_counter()
    middle = tuple((a + b) / 2 for a, b in zip(request.weights, request.to, strict=True))
    return LineCompletion(
        request_id=request.request_id,
        text="",
        finish_reason=reason,
        token_ids=(),
        logprobs=(),
        weights=named(engine.lanes, middle),
        seed=0,
        prompt_tokens=len(request.prompt_ids),
        queue_s=(line.started or now) - line.arrived,
        first_token_s=(line.first_token or now) - line.arrived,
        total_s=now - line.arrived,
        lane_row_steps=0 if line.sweep is None else line.sweep.lane_row_steps,
        intervals=line.sweep.intervals() if line.sweep is not None and line.sweep.done else (),
    )
