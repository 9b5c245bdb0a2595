"""Scoring beside the engine: a separate thread, a bounded queue and a timeout.

A scorer that raises, hangs or returns invalid scores only leaves a text unscored, with a reason. Routes use `Scoring`;
the scorers run on a thread of this process or in a separate deployment (`server/ray/scorers.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emorl_core.bundles.bundle import BundleSpec
from emorl_core.bundles.stored_scorers import Scorers
from emorl_core.scorers import Checked
from emorl_core.scorers.asking import Statement, ask_rounded
from server.settings import Settings
from server.watch.logs import where
from server.watch.metrics import UNSCORED, Metrics

logger = logging.getLogger("emorl.server")

FAILED, TIMEOUT, BUSY, CODE, TOO_LONG = UNSCORED
_AT_ONCE = 32  # texts in one call of a scorer
_NICENESS = 10  # the thread's niceness on Linux, so that the engine has priority
_POLL_S = 0.02
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Scores:
    """One text's scores by scorer: a number from 0 to 1, or None with the reason in `unscored`."""

    scores: dict[str, float | None]
    unscored: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"scores": self.scores, "unscored": self.unscored}


@dataclass(eq=False, slots=True)
class _Job:
    """`found`: by scorer, one entry per text, filled by the thread; entries missing at the deadline count as late."""

    about: list[Statement]
    texts: list[str]
    done: asyncio.Event = field(default_factory=asyncio.Event)
    found: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Hand:
    """One thread. `busy_with` and `since`: the scorer being called, and since when; `gone`: it was abandoned."""

    busy_with: str | None = None
    since: float = 0.0
    gone: bool = False


class Scoring(ABC):
    """Created and used on the event loop. `names`: of the scorers."""

    def __init__(self, names: Iterable[str], metrics: Metrics) -> None:
        self.names = tuple(names)
        self._metrics = metrics

    async def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Scores]:
        """One result per text; text i answers prompt i. Many texts are split into batches, so that other requests come
        between."""
        found: list[Scores] = []
        for start in range(0, len(texts), _AT_ONCE):
            found += await self._some(prompts[start : start + _AT_ONCE], texts[start : start + _AT_ONCE])
        for each in found:
            for name in self.names:
                self._metrics.scored(name, each.unscored.get(name))
        return found

    def none(self, reason: str) -> Scores:
        """The result of a text that no scorer has scored."""
        return Scores(dict.fromkeys(self.names), dict.fromkeys(self.names, reason))

    @abstractmethod
    async def stop(self) -> None:
        """No more calls will follow."""

    @abstractmethod
    async def _some(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Scores]:
        """As `score`, of at most `_AT_ONCE` texts; never raises."""


# makes the client of scorers that are loaded elsewhere
MakeScoring = Callable[[BundleSpec, Settings, Metrics], Scoring]


class ScoringThread(Scoring):
    """Scorers of this process. One that hangs occupies its thread and is not called until it returns; a new thread
    serves the others."""

    def __init__(self, scorers: Scorers, settings: Settings, metrics: Metrics) -> None:
        super().__init__(scorers, metrics)
        self._ready = {name: scorer for name, scorer in scorers.items() if scorer is not None}
        self._timeout_s = settings.score_timeout_s
        self._most_waiting = settings.score_queue
        self._most_chars = settings.max_score_chars
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._stuck: set[str] = set()
        self._hand: _Hand | None = None
        self._stopping = False
        self._watching = False  # fires when a scorer exceeds its time
        self._change = threading.Condition()

    async def stop(self) -> None:
        """Stop the thread; a hanging one is abandoned."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        deadline = time.monotonic() + _STOP_S
        while self._hand is not None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)

    async def _some(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Scores]:
        fits = [max(len(p), len(t)) <= self._most_chars for p, t in zip(prompts, texts, strict=True)]
        places = [place for place, fit in enumerate(fits) if fit]
        job = _Job([Statement(prompts[place]) for place in places], [texts[place] for place in places])
        late = TIMEOUT
        if places and self._ready:
            with self._change:
                if sum(len(each.texts) for each in self._jobs) + len(places) > self._most_waiting:
                    late = BUSY
                else:
                    self._jobs.append(job)
                    self._change.notify()
                    self._have_a_hand()
            if late is not BUSY:
                await self._wait(job)
        answers = [Scores({}, {}) for _ in texts]
        for place, answer in enumerate(answers):
            for name in self.names:
                if name not in self._ready:
                    score, reason = None, CODE
                elif not fits[place]:
                    score, reason = None, TOO_LONG
                elif name not in job.found:
                    score, reason = None, late
                else:
                    score, reason = job.found[name][places.index(place)], FAILED
                answer.scores[name] = score
                if score is None:
                    answer.unscored[name] = reason
        return answers

    async def _wait(self, job: _Job) -> None:
        try:
            await asyncio.wait_for(job.done.wait(), self._timeout_s)
        except TimeoutError:
            if not self._watching:
                self._leave_who_hangs()
        finally:  # late, or its client disconnected
            with self._change, contextlib.suppress(ValueError):
                self._jobs.remove(job)

    def _leave_who_hangs(self) -> None:
        """When a scorer has exceeded its time, continue with the others on a new thread; else check again at its
        deadline."""
        with self._change:
            hand, self._watching = self._hand, False
            if hand is None or hand.busy_with is None or self._stopping:
                return
            left = hand.since + self._timeout_s - time.monotonic()
            if left > 0:
                self._watching = True
                self._loop.call_later(left, self._leave_who_hangs)
                return
            logger.warning("scorer %s does not answer; it is not asked until it does", hand.busy_with)
            hand.gone = True
            self._stuck.add(hand.busy_with)
            self._hand = None
            if self._jobs:
                self._have_a_hand()

    # --- threads -----------------------------------------------------------------------------------------------------

    def _have_a_hand(self) -> None:
        """`_change` is held."""
        if self._hand is None:
            self._hand = _Hand()
            threading.Thread(target=self._main, args=(self._hand,), name="emorl-score", daemon=True).start()

    def _main(self, hand: _Hand) -> None:
        if sys.platform == "linux":  # on other systems niceness is per process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while jobs := self._next():
            for name, scorer in self._ready.items():
                with self._change:
                    if name in self._stuck:
                        continue
                    hand.busy_with, hand.since = name, time.monotonic()
                started = time.perf_counter()
                about, texts = [a for job in jobs for a in job.about], [t for job in jobs for t in job.texts]
                found = _asked(name, scorer, about, texts)
                self._metrics.score_seconds.labels(name).observe(time.perf_counter() - started)
                with self._change:
                    if hand.gone:
                        self._stuck.discard(name)
                        return
                    hand.busy_with = None
                for job in jobs:
                    job.found[name], found = found[: len(job.texts)], found[len(job.texts) :]
            with contextlib.suppress(RuntimeError):  # the loop is closed; nobody waits
                for job in jobs:
                    self._loop.call_soon_threadsafe(job.done.set)

    def _next(self) -> list[_Job]:
        """The next batch, oldest first, up to `_AT_ONCE` texts; empty at the end."""
        with self._change:
            while not self._jobs and not self._stopping:
                self._change.wait()
            if self._stopping:
                self._hand = None
                return []
            jobs = [self._jobs.popleft()]
            texts = len(jobs[0].texts)
            while self._jobs and texts + len(self._jobs[0].texts) <= _AT_ONCE:
                jobs.append(self._jobs.popleft())
                texts += len(jobs[-1].texts)
            return jobs


def _asked(name: str, scorer: Checked, about: list[Statement], texts: list[str]) -> list[float | None]:
    """One score per text; None for texts on which the scorer fails individually."""
    try:
        return [*ask_rounded(scorer, about, texts)]
    except BaseException as error:  # noqa: BLE001  someone else's code, and its thread must live
        if len(texts) > 1:
            pairs = zip(about, texts, strict=True)
            return [score for each, text in pairs for score in _asked(name, scorer, [each], [text])]
        logger.warning("scorer %s failed on a text: %s", name, where(error))
        return [None]
