"""Measuring in rounds: every engine once per round, in alternating order, so that slow periods of the machine affect
all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.speed.worker import InProcess, Worker
from benchmarks.speed.workload import Setup, Times, Work

_seeds = count(1000)  # never repeat a prompt unintentionally, since it would be in the prefill cache


@dataclass(frozen=True, slots=True)
class Entrant:
    """An engine with its work; `name` is its row in the report."""

    name: str
    setup: Setup
    work: Work
    method: str = "run"  # of the engine


class Pool:
    """The loaded engines. Loading takes seconds, so engines that the next case also needs are kept."""

    def __init__(self, *, in_process: bool = False) -> None:
        self._kind = InProcess if in_process else Worker
        self._workers: dict[Setup, Worker] = {}

    def only(self, setups: Sequence[Setup]) -> None:
        """Load and unload engines so that exactly these are loaded."""
        for setup in [each for each in self._workers if each not in setups]:
            self._workers.pop(setup).close()
        for setup in dict.fromkeys(setups):
            if setup not in self._workers:
                kept = "" if setup.quantize == "off" else setup.quantize
                say(
                    " ".join(
                        part for part in ("loading", setup.engine, setup.dtype, kept, Path(setup.folder).name) if part
                    )
                )
                self._workers[setup] = self._kind(setup)

    def __getitem__(self, setup: Setup) -> Worker:
        return self._workers[setup]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *raised: object) -> None:
        self.only([])


def take_turns(
    pool: Pool,
    entrants: Sequence[Entrant],
    rounds: int,
    *,
    measure: Callable[[Worker, Entrant, Work], Times] | None = None,
) -> dict[Entrant, list[Times]]:
    """Warm up every entrant once with its whole work, then measure `rounds` rounds. All entrants of a round have one
    seed."""
    call = measure or (lambda worker, entrant, work: worker.call(entrant.method, work))
    pool.only([entrant.setup for entrant in entrants])
    taken: dict[Entrant, list[Times]] = {entrant: [] for entrant in entrants}
    for number in range(-1, rounds):
        seed = next(_seeds)
        say("warming up" if number < 0 else f"round {number + 1} of {rounds}")
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            times = call(pool[entrant.setup], entrant, entrant.work.seeded(seed))
            if number >= 0:
                taken[entrant].append(times)
    return taken


def say(what: str, *, indent: str = "  ") -> None:
    """Print progress."""
    print(f"{indent}{what}", file=sys.stderr, flush=True)
