"""Answer times on an idle machine and with a busy program on one core: threads chosen by the server compared with fixed
numbers.

    python -m benchmarks.busy_neighbour --bundle my-bundle

For each number of threads a server answers one request after the other: first alone, then beside a neighbour (a process
that computes forever, pinned to one core), at once and after it has had time to adapt, and finally after the neighbour
has ended. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.http.streams import Target, ask, generate_body
from benchmarks.load import served

_BUSY = "import os\nos.sched_setaffinity(0, {int(__import__('sys').argv[1])})\nwhile True: pass"
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run: seconds of each answer, and the threads that the server computed with at its end."""

    threads: str  # the setting
    name: str
    seconds: list[float]
    computed_with: int

    def line(self) -> str:
        middle, worst = statistics.median(self.seconds), max(self.seconds)
        return f"{self.threads:8}{self.name:24}{middle:8.2f}{worst:8.2f}   {self.computed_with:4}"


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    """A process that computes forever on one core."""
    with subprocess.Popen([sys.executable, "-c", _BUSY, str(core)]) as process:
        try:
            yield
        finally:
            process.kill()


def answers(target: Target, count: int, new_tokens: int, seed: int) -> list[float]:
    """Seconds of each of `count` answers, one after the other."""
    dice = random.Random(seed)
    taken = []
    for _ in range(count):
        body = generate_body(dice, new_tokens, stream=True, exactly=True)
        began = time.perf_counter()
        answer = asyncio.run(ask(target, body))
        if answer.kind != "completed":
            raise SystemExit(f"benchmarks.busy_neighbour: error: an answer ended as {answer.kind}")
        taken.append(time.perf_counter() - began)
    return taken


def measure(bundle: Path, threads: str, options: argparse.Namespace) -> list[Phase]:
    own = argparse.Namespace(dtype=options.dtype, slots=16, max_queue=64, threads=threads)
    phases = []
    with served(bundle, own) as (url, _):
        target = Target.parse(url)

        def phase(name: str, count: int = options.answers) -> None:
            taken = answers(target, count, options.new_tokens, len(phases))
            with urllib.request.urlopen(f"{url}/info", timeout=60) as info:
                phases.append(Phase(threads, name, taken, json.load(info)["threads"]))
            print(phases[-1].line(), flush=True)

        answers(target, _WARM_UP, options.new_tokens, seed=99)
        phase("alone")
        with neighbour(options.core):
            phase("neighbour, at first", count=3)
            until = time.monotonic() + options.settle
            while time.monotonic() < until:
                answers(target, 1, options.new_tokens, seed=7)
            phase("neighbour, later")
        until = time.monotonic() + options.return_after
        while time.monotonic() < until:
            answers(target, 1, options.new_tokens, seed=8)
        phase("alone again")
    return phases


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder to serve")
    parser.add_argument(
        "--threads",
        nargs="+",
        default=["auto", "1", str(os.cpu_count() or 1)],
        metavar="N",
        help="the server's values of threads to compare (default: auto, 1, all cores)",
    )
    parser.add_argument("--answers", type=int, default=10, help="answers per part (default 10)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens per answer (default 64)")
    parser.add_argument("--settle", type=float, default=15.0, help="seconds to wait beside the neighbour (default 15)")
    parser.add_argument(
        "--return-after", type=float, default=70.0, help="seconds to wait after the neighbour has ended (default 70)"
    )
    parser.add_argument("--core", type=int, default=0, help="core of the neighbour (default 0)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="number format (default auto)"
    )
    options = parser.parse_args(argv)
    if options.core not in os.sched_getaffinity(0):
        print(
            f"benchmarks.busy_neighbour: error: --core is {options.core}; this process may not use it", file=sys.stderr
        )
        return 2
    print(
        f"{'threads':8}{'':24}{'median':>8}{'worst':>8}   used   (seconds of an answer of {options.new_tokens} tokens)"
    )
    phases = [each for threads in options.threads for each in measure(options.bundle, threads, options)]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"machine": machine, "phases": [asdict(each) for each in phases]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
