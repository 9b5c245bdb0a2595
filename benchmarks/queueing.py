"""Simulates N replicas at increasing load; nothing is served or timed.

    python -m benchmarks.queueing --step-ms 20 --row-ms 1.5 --prompt-ms 60

The three times are measured beforehand on one replica: a step with one row, the time that each further row adds, and
the time that prefilling a prompt adds to the step that admits it. Arrivals are a Poisson process. As in Ray Serve's
router, a request goes to the less busy of two random replicas, where it waits in order for a slot; a full queue refuses
it (429).
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

REPLICAS = (1, 4, 16, 64)
LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25)  # fractions of the capacity with every slot in use


@dataclass(frozen=True, slots=True)
class Times:
    """Times of one replica, in seconds."""

    step_s: float
    row_s: float
    prompt_s: float

    def step(self, rows: int, prompts: int) -> float:
        return self.step_s + self.row_s * (rows - 1) + self.prompt_s * prompts


@dataclass(frozen=True, slots=True)
class Door:
    slots: int
    queue: int


@dataclass(slots=True)
class Replica:
    """Requests are (arrival, tokens left). `busy`: a step is in progress."""

    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    running: list[tuple[float, int]] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)  # arrivals of requests with their first token in this step
    busy: bool = False

    @property
    def ongoing(self) -> int:
        return len(self.waiting) + len(self.running)


@dataclass(frozen=True, slots=True)
class Outcome:
    """first_s: time to first token of each completed request, sorted."""

    first_s: list[float]
    completed: int
    refused: int
    seconds: float

    def quantile(self, share: float) -> float:
        return self.first_s[min(len(self.first_s) - 1, int(share * len(self.first_s)))] if self.first_s else 0.0


def capacity(times: Times, door: Door, tokens: int) -> float:
    """Requests per second of one replica with all slots in use: `tokens` steps per `slots` requests, plus their
    prefill."""
    return door.slots / (tokens * times.step(door.slots, 0) + door.slots * times.prompt_s)


def simulate(
    times: Times, door: Door, *, replicas: int, rate: float, tokens: int, seconds: float, seed: int
) -> Outcome:
    """Simulate `rate` requests per second of `tokens` each, for `seconds` and until all have ended."""
    dice = Random(seed)
    fleet = [Replica() for _ in range(replicas)]
    events: list[tuple[float, int]] = [(dice.expovariate(rate), -1)]  # (time, replica whose step ends; -1: arrival)
    first_s: list[float] = []
    completed = refused = 0

    def begin(number: int, now: float) -> None:
        replica = fleet[number]
        while replica.waiting and len(replica.running) < door.slots:
            request = replica.waiting.popleft()
            replica.running.append(request)
            replica.fresh.append(request[0])
        replica.busy = bool(replica.running)
        if replica.busy:
            heapq.heappush(events, (now + times.step(len(replica.running), len(replica.fresh)), number))

    while events:
        now, number = heapq.heappop(events)
        if number >= 0:
            replica = fleet[number]
            first_s += [now - arrived for arrived in replica.fresh]
            replica.fresh.clear()
            completed += sum(left == 1 for _, left in replica.running)
            replica.running = [(arrived, left - 1) for arrived, left in replica.running if left > 1]
            begin(number, now)
            continue
        if now < seconds:
            heapq.heappush(events, (now + dice.expovariate(rate), -1))
            number = min((dice.randrange(replicas) for _ in range(2)), key=lambda each: fleet[each].ongoing)
            replica = fleet[number]
            if replica.ongoing >= door.slots + door.queue:
                refused += 1
            else:
                replica.waiting.append((now, tokens))
                if not replica.busy:
                    begin(number, now)
    return Outcome(sorted(first_s), completed, refused, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--step-ms", type=float, required=True, help="time of a step with one row, in ms")
    made.add_argument("--row-ms", type=float, required=True, help="time that each further row adds to a step, in ms")
    made.add_argument(
        "--prompt-ms", type=float, required=True, help="time that prefilling one prompt adds to a step, in ms"
    )
    made.add_argument("--tokens", type=int, default=64, help="tokens per request (default 64)")
    made.add_argument("--slots", type=int, default=16, help="slots per replica (default 16)")
    made.add_argument("--max-queue", type=int, default=64, help="max_queue per replica (default 64)")
    made.add_argument("--seconds", type=float, default=120.0, help="duration of arrivals (default 120)")
    made.add_argument("--seed", type=int, default=0, help="seed of the arrivals (default 0)")
    options = made.parse_args(argv)
    if min(options.step_ms, options.row_ms, options.prompt_ms) < 0 or options.step_ms == 0 or options.tokens < 1:
        made.error("times must not be negative, --step-ms above 0, --tokens at least 1")
    times = Times(options.step_ms / 1e3, options.row_ms / 1e3, options.prompt_ms / 1e3)
    door = Door(options.slots, options.max_queue)
    rows = []
    print("| replicas | load | requests a second | first token p50, s | p99, s | refused |\n|---|---|---|---|---|---|")
    for replicas in REPLICAS:
        for load in LOADS:
            rate = load * replicas * capacity(times, door, options.tokens)
            sizes = {"replicas": replicas, "rate": rate, "tokens": options.tokens, "seconds": options.seconds}
            seen = simulate(times, door, **sizes, seed=options.seed)
            share = seen.refused / max(1, seen.refused + seen.completed)
            row = (replicas, load, seen.completed / options.seconds, seen.quantile(0.5), seen.quantile(0.99), share)
            rows.append(row)
            print("| {} | {:.0%} | {:.1f} | {:.3f} | {:.3f} | {:.1%} |".format(*row), flush=True)
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
