"""How many threads torch computes with, chosen by measuring.

torch's threads wait for each other after every product. On an idle machine more threads are faster. If other programs
use the cores, each product waits for a thread that is not running: on two busy cores an answer took 3 to 11 s with two
threads and 0.1 to 0.4 s with one. Only measuring shows which case applies, and it changes.

Sums may round differently with another number of threads, as they do with other requests in the batch.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from emorl_core.errors import InvalidRequest, shown
from emorl_core.types import MAX_THREADS, Threads

_BLOCK = 6  # steps of a trial per number of threads; the first wakes the threads and does not count
_HOPELESS = 3.0  # slowdown against another number at which two steps are enough
_WORSE = 1.2  # slowdown against fewer threads at which more are not tried
_GAIN = 1.1  # speed-up required to prefer more threads
_WINDOW = 5  # steps whose median is compared with the usual time for that size
_SLOWER = 2.5  # slowdown against the usual time
_PATIENCE_S = 2.0  # seconds that it must last
_SLOW_EVERY_S = 10.0  # seconds between two trials for slow steps
_UP_EVERY_S = 60.0  # seconds between two trials of more threads
_EVERY_MOST_S = 600.0  # upper bound of both, after trials without effect
_STRAYS = 50  # steps of another size after which a trial restarts with that size


@functools.cache
def most_threads() -> int:
    """torch's own number (OMP_NUM_THREADS, or the cores of this machine), as it was at the first call: a Python thread
    started after a choice inherits the chosen number."""
    return torch.get_num_threads()


def check_threads(threads: object) -> Threads:
    """Raises InvalidRequest unless it is `auto` or a number of threads."""
    if threads == "auto":
        return "auto"
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InvalidRequest(
            f"threads is {shown(threads)}; allowed: auto, or a whole number from 1 to {MAX_THREADS}", param="threads"
        )
    return threads


def product_s(count: int, within_s: float = 0.02) -> float:
    """Seconds that a small product takes now with this many threads, on the calling thread; leaves torch with that
    number. Contention between threads slows products so much that a few measurements suffice."""
    torch.set_num_threads(count)
    a, b = torch.ones(512, 128), torch.ones(128, 384)
    torch.relu(a @ b)  # wakes the threads
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or (rounds < 100 and time.perf_counter() - began < within_s):
        torch.relu(a @ b)
        rounds += 1
    return (time.perf_counter() - began) / rounds


def fastest_threads(most: int | None = None) -> int:
    """1 or `most` (None: torch's own number), whichever is faster at small products now; for long work without steps to
    observe."""
    before, most = torch.get_num_threads(), most_threads() if most is None else most
    counts = dict.fromkeys((1, max(1, min(most, os.cpu_count() or 1))))
    try:
        return min(counts, key=product_s)
    finally:
        torch.set_num_threads(before)


class ThreadChoice:
    """The number of threads for the next step. Call `observe` after every step; if necessary, the next few steps become
    a trial.

    Only the thread that runs the steps may call it: torch's number belongs to the thread that sets it.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        apply: Callable[[int], None] = torch.set_num_threads,
        probe: Callable[[int], float] = product_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """counts: to choose among, rising; a single one is fixed. probe: how long a little work takes with a number."""
        self.counts = tuple(counts)
        self.count = self.counts[-1]
        self.on_choice: Callable[[str], None] = lambda _: None  # called with one line per choice
        self._apply = apply
        self._probe = probe
        self._clock = clock
        self._told: int | None = None
        self._trial: _Trial | None = None
        self._usual = _Usual()
        self._unchanged = 0  # trials in a row that chose what was there
        self._tried_at = clock()

    @classmethod
    def of(cls, threads: Threads, device: torch.device) -> ThreadChoice:
        """`auto` chooses on a CPU, among 1, 2, 4, ... and what torch computes with now."""
        most = torch.get_num_threads()
        if threads != "auto":
            return cls([threads])
        if device.type != "cpu":
            return cls([most])
        return cls([*(1 << i for i in range((most - 1).bit_length())), most])

    @property
    def measuring(self) -> bool:
        return self._trial is not None

    @property
    def trial_steps(self) -> int:
        """Steps that a trial takes at most."""
        return _BLOCK * len(self.counts)

    def start(self) -> None:
        """Call it on the thread that will run the steps, before the first one."""
        if len(self.counts) == 1:
            self._use(self.count, "")
        else:
            self._try(_Trial(self.counts))

    def observe(self, took_s: float, rows: int) -> None:
        """Record a step. rows: lane rows that it computed; 0: it included other work, and does not count."""
        if len(self.counts) == 1 or not rows:
            return
        size = round(2 * math.log2(rows))
        if self._trial is not None:
            self._go_on(self._trial, took_s, size)
            return
        slow_for_s = self._usual.slow_for_s(took_s, size, self._clock())
        candidates = self._due(slow_for_s)
        known = self._usual.now_s(size)
        if candidates and known is not None:
            self._try(_Trial(candidates, size, {self.count: known}))

    def _due(self, slow_for_s: float) -> Sequence[int]:
        """The numbers to try now, in order: fewer threads if steps have become slow, or more, since the machine may be
        idle again."""
        since = self._clock() - self._tried_at
        at = self.counts.index(self.count)
        fewer, more = self.counts[:at][::-1], self.counts[at + 1 :]
        if slow_for_s >= _PATIENCE_S and since >= self._interval(_SLOW_EVERY_S):
            return fewer or more
        return more if since >= self._interval(_UP_EVERY_S) else ()

    def _interval(self, first_s: float) -> float:
        return min(_EVERY_MOST_S, first_s * 2**self._unchanged)

    def _try(self, trial: _Trial) -> None:
        self._trial = trial
        self._next(trial)

    def _go_on(self, trial: _Trial, took_s: float, size: int) -> None:
        before = trial.count
        trial.observe(took_s, size)
        if trial.strays > _STRAYS:  # the batch size has changed permanently
            self._trial = None
            self._apply(self.count)
        elif trial.done or trial.count != before:
            self._next(trial)

    def _next(self, trial: _Trial) -> None:
        """Try the next number of threads, unless the probe already shows that its steps would be far too slow."""
        if trial.medians and not trial.done:
            best = min(trial.medians, key=trial.medians.__getitem__)
            if self._probe(trial.count) > _HOPELESS * self._probe(best):
                trial.give_up()
        if trial.done:
            self._settle(trial)
        else:
            self._apply(trial.count)

    def _settle(self, trial: _Trial) -> None:
        chosen = trial.best()
        self._unchanged = self._unchanged + 1 if chosen == self.count else 0
        self._trial = None
        self._usual = _Usual({trial.size or 0: trial.medians[chosen]})
        self._tried_at = self._clock()
        found = ", ".join(f"{1000 * took:.1f} ms with {count}" for count, took in trial.medians.items())
        self._use(chosen, f"; a step takes {found}")

    def _use(self, count: int, why: str) -> None:
        self.count = count
        self._apply(count)
        if count != self._told:
            self._told = count
            self.on_choice(f"computing with {count} thread{'s' if count > 1 else ''}{why}")


class _Trial:
    """A trial: a few steps with each number, in the given order, until one is worse than those before it."""

    def __init__(
        self, counts: Sequence[int], size: int | None = None, known: Mapping[int, float] | None = None
    ) -> None:
        """size: of the steps that count; None: that of the first. known: number -> seconds of a step of that size."""
        self._left = deque(counts)
        self._times: list[float] = []
        self.size = size
        self.strays = 0  # steps of other sizes
        self.medians = dict(known or {})  # number -> seconds

    @property
    def count(self) -> int:
        """The number of threads for the next step."""
        return self._left[0]

    @property
    def done(self) -> bool:
        return not self._left

    def observe(self, took_s: float, size: int) -> None:
        self.size = size if self.size is None else self.size
        if size != self.size:
            self.strays += 1
            return
        self._times.append(took_s)
        best = min(self.medians.values(), default=float("inf"))
        if len(self._times) == _BLOCK or sum(took > _HOPELESS * best for took in self._times) == 2:
            median = statistics.median(self._times[1:])
            self.medians[self._left.popleft()] = median
            self._times = []
            if median > _WORSE * best:
                self.give_up()

    def give_up(self) -> None:
        """Try no more numbers."""
        self._left.clear()

    def best(self) -> int:
        """The smallest number of threads that is about as fast as any."""
        least = min(self.medians.values())
        return min(count for count, median in self.medians.items() if median <= _GAIN * least)


class _Usual:
    """The usual step time since the last trial, by size, and for how long steps have been much slower."""

    def __init__(self, medians: dict[int, float] | None = None) -> None:
        self._least = dict(medians or {})  # seconds; by size
        self._recent: dict[int, deque[float]] = {}
        self._slow_since: float | None = None

    def now_s(self, size: int) -> float | None:
        """The median time of the last few steps of this size; None if there have been too few."""
        recent = self._recent.get(size, ())
        return statistics.median(recent) if len(recent) == _WINDOW else None

    def slow_for_s(self, took_s: float, size: int, now: float) -> float:
        self._recent.setdefault(size, deque(maxlen=_WINDOW)).append(took_s)
        median = self.now_s(size)
        if median is None:
            return 0.0
        self._least[size] = min(median, self._least.get(size, median))
        if median <= _SLOWER * self._least[size]:
            self._slow_since = None
            return 0.0
        self._slow_since = now if self._slow_since is None else self._slow_since
        return now - self._slow_since
