"""A server under load, disconnecting clients, SIGTERM under load, and the cost of HTTP. Only against this machine.

    python -m benchmarks.load --bundle my-bundle --clients 200 --seconds 60 --warm-up 60
    python -m benchmarks.load --bundle my-bundle --leavers 300
    python -m benchmarks.load --bundle my-bundle --clients 60 --term-after 5
    python -m benchmarks.load --bundle my-bundle --overhead
    python -m benchmarks.load --url http://127.0.0.1:8000 --clients 50 --seconds 10

`--bundle` starts `emorl serve` for the bundle, and stops it at the end. Exit code 1: a check failed. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.http import drain, leavers, overhead
from benchmarks.http.streams import Answer, NotHere, Target, ask, generate_body, seconds_until_idle

MOST_CLIENTS, MOST_SECONDS, MOST_REQUESTS = 1000, 600.0, 200_000
_FREE_WITHIN_S = 5.0
_FLAT = 0.05  # relative growth of memory that is ignored
_FLAT_MIB = 16.0  # absolute growth that is ignored


@dataclass(slots=True)
class Report:
    """The clients' observations. `rss_mib`: the server's resident memory at regular intervals during the run."""

    clients: int
    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    free_after_s: float | None = None

    def add(self, answer: Answer) -> None:
        self.outcomes[answer.kind] += 1
        if answer.kind == "completed" and answer.first_token_s is not None:
            self.tokens += answer.tokens
            self.first_s.append(answer.first_token_s)
            self.gaps_s += answer.gaps

    @property
    def memory(self) -> tuple[float, float] | None:
        """MiB in the middle and last thirds of the run; the first third is warm-up."""
        third = len(self.rss_mib) // 3
        if not third:
            return None
        return statistics.median(self.rss_mib[third : 2 * third]), statistics.median(self.rss_mib[2 * third :])

    def faults(self) -> list[str]:
        """Failed checks, one line each."""
        found = [
            f"{count} requests: {kind}" for kind, count in self.outcomes.items() if kind not in ("completed", "refused")
        ]
        if not self.outcomes["completed"]:
            found.append("no request was completed")
        if self.free_after_s is None:
            found.append(f"not everything was free {_FREE_WITHIN_S:g} s after the last answer")
        if self.memory is not None and self.memory[1] - self.memory[0] > max(_FLAT_MIB, _FLAT * self.memory[0]):
            found.append(f"memory grew from {self.memory[0]:.0f} to {self.memory[1]:.0f} MiB after warm-up")
        return found

    @property
    def holds(self) -> bool:
        return not self.faults()

    def lines(self) -> list[str]:
        shown = [
            f"{self.clients} clients for {self.seconds:g} s",
            f"outcomes         {', '.join(f'{kind} {count}' for kind, count in sorted(self.outcomes.items()))}",
            f"tokens           {self.tokens / self.seconds:.0f} per second",
            f"first token      p50 {_ms(self.first_s, 50)}   p99 {_ms(self.first_s, 99)}   (queue included)",
            f"between tokens   p50 {_ms(self.gaps_s, 50)}   p99 {_ms(self.gaps_s, 99)}",
        ]
        if self.memory is not None:
            shown.append(
                f"memory           {self.memory[0]:.0f} MiB after warm-up, {self.memory[1]:.0f} MiB at the end"
            )
        return shown + [f"FAULT            {fault}" for fault in self.faults()]

    def facts(self) -> dict[str, Any]:
        quantiles = {
            f"{name}_p{p}_ms": percentile(values, p) * 1e3
            for name, values in (("first_token", self.first_s), ("inter_token", self.gaps_s))
            for p in (50, 99)
            if values
        }
        memory = None if self.memory is None else [round(mib, 1) for mib in self.memory]
        return {
            "clients": self.clients,
            "seconds": self.seconds,
            "outcomes": dict(self.outcomes),
            "tokens": self.tokens,
            "memory_mib": memory,
            **quantiles,
        }


Measured = Report | leavers.Report | drain.Report | overhead.Report


def percentile(values: Sequence[float], p: int) -> float:
    """The smallest value that at least p % of values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * p // 100) - 1)]


def _ms(values: Sequence[float], p: int) -> str:
    return f"{percentile(values, p) * 1e3:.1f} ms" if values else "-"


async def keep_asking(
    target: Target, dice: random.Random, left_s: Callable[[], float], report: Report, *, new_tokens: int, hang_s: float
) -> None:
    """One client, which sends its next request after an answer, or after a refusal when the server says. It sends at
    least one request, and none once `left_s` is 0."""
    while True:
        try:
            answer = await asyncio.wait_for(ask(target, generate_body(dice, new_tokens, stream=True)), hang_s)
        except TimeoutError:
            answer = Answer(error=f"no end within {hang_s:g} s")
        report.add(answer)
        if answer.kind != "completed":
            await asyncio.sleep(min((answer.retry_after_s or 1.0) * dice.uniform(1.0, 1.5), left_s()))
        if left_s() <= 0.0:
            return


def resident_mib(process: psutil.Process) -> float:
    """Resident memory of a server and its engine's process, without the compiler, which runs only at times."""
    total = process.memory_info().rss
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss
    return float(total) / 2**20


async def run(
    target: Target,
    clients: int,
    seconds: float,
    *,
    new_tokens: int = 64,
    hang_s: float = 120.0,
    pid: int | None = None,
    seed: int = 0,
) -> Report:
    """`clients` concurrent streams for `seconds`, at least one request per client; after a refusal, a client waits as
    long as the server says. The seed determines the prompts."""
    report = Report(clients, seconds)
    end = time.monotonic() + seconds

    def left_s() -> float:
        return max(0.0, end - time.monotonic()) if report.outcomes.total() < MOST_REQUESTS else 0.0

    def client(number: int) -> Awaitable[None]:
        dice = random.Random(seed + number)
        return keep_asking(target, dice, left_s, report, new_tokens=new_tokens, hang_s=hang_s)

    async def watch(process: psutil.Process) -> None:
        while True:
            report.rss_mib.append(resident_mib(process))
            await asyncio.sleep(min(0.5, seconds / 30))

    watcher = None if pid is None else asyncio.create_task(watch(psutil.Process(pid)))
    await asyncio.gather(*(client(number) for number in range(clients)))
    if watcher is not None:
        watcher.cancel()
    report.free_after_s = await seconds_until_idle(target, _FREE_WITHIN_S)
    return report


@contextmanager
def served(
    bundle: Path, options: argparse.Namespace, settings: Mapping[str, object] | None = None, **process: Any
) -> Iterator[tuple[str, int]]:
    """`emorl serve` for a bundle on a free port: its URL and its process id. `process`: more for `subprocess.Popen`."""
    flags = {"port": 0, "dtype": options.dtype, "slots": options.slots, "max-queue": options.max_queue}
    flags["threads"] = options.threads
    # 600 s: on a slow machine clients only wait longer.
    flags |= {"queue-timeout-s": 600, "log-level": "warning"}
    flags |= settings or {}
    process = {"env": {**os.environ, "OMP_NUM_THREADS": str(options.threads)}, **process}
    with serving(bundle, flags, **process) as started:
        yield started


@contextmanager
def serving(bundle: Path, flags: Mapping[str, object], **process: Any) -> Iterator[tuple[str, int]]:
    """`served` with nothing but these flags."""
    command = [sys.executable, "-m", "emorl_cli", "serve", str(bundle)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **process) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line.startswith("serving on "):
                raise SystemExit(f"emorl serve {bundle} did not start: {line.strip() or 'see above'}")
            yield line.removeprefix("serving on ").strip(), server.pid
        finally:
            server.terminate()


def listening_on(port: int) -> int | None:
    """The process that listens on a port of this machine, if it is visible."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    found = {each.pid for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port}
    return next(iter(found), None)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bundle", type=Path, action="append", default=[], help="bundle folder to serve; repeatable")
    made.add_argument("--url", help="use this running server instead; it must be on this machine")
    made.add_argument("--key", help="API key of that server")
    made.add_argument(
        "--clients", type=int, default=200, help=f"concurrent streams, up to {MOST_CLIENTS} (default 200)"
    )
    made.add_argument("--seconds", type=float, default=60.0, help=f"duration, up to {MOST_SECONDS:g} (default 60)")
    made.add_argument(
        "--warm-up", type=float, default=0.0, help="seconds of the same load before measuring (default 0)"
    )
    made.add_argument("--leavers", type=int, help="instead: number of clients that disconnect at random times")
    made.add_argument(
        "--at-once",
        type=int,
        default=48,
        help="concurrent leavers; must be fewer than slots and queue together (default 48)",
    )
    made.add_argument(
        "--within", type=float, default=1.0, help="seconds within which all slots must be free again (default 1)"
    )
    made.add_argument("--term-after", type=float, help="instead: send SIGTERM after this many seconds of load")
    made.add_argument("--overhead", action="store_true", help="instead: compare HTTP with the engine in this process")
    made.add_argument("--rounds", type=int, default=20, help="rounds of --overhead (default 20)")
    made.add_argument("--new-tokens", type=int, default=64, help="maximum tokens per request (default 64)")
    made.add_argument("--slots", type=int, default=16, help="the server's slots (default 16)")
    made.add_argument("--max-queue", type=int, default=64, help="the server's max_queue (default 64)")
    made.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="number format (default auto)"
    )
    made.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="the server's CPU threads (default: all cores)"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    refusal = _refusal(options)
    if refusal:
        print(f"benchmarks.load: error: {refusal}", file=sys.stderr)
        return 2
    whole = True
    facts: list[dict[str, Any]] = []
    for bundle in options.bundle or [None]:
        try:
            report = _measure_url(options) if bundle is None else _measure_bundle(options, bundle)
        except overhead.Different as error:
            print(f"benchmarks.load: error: {error}", file=sys.stderr)
            return 1
        print("\n".join(report.lines()), flush=True)
        facts.append(report.facts())
        whole = whole and report.holds
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": options.threads}
    print(json.dumps({"holds": whole, "machine": machine, "reports": facts}))
    return 0 if whole else 1


def _refusal(options: argparse.Namespace) -> str | None:
    if bool(options.bundle) == bool(options.url):
        return "give --bundle or --url, one of them"
    if options.overhead and not options.bundle:
        return "--overhead loads the bundle into this process too: give --bundle"
    if options.term_after and not options.bundle:
        return "--term-after ends the server: give --bundle, so that it is one of ours"
    bounds = {"clients": MOST_CLIENTS, "seconds": MOST_SECONDS, "leavers": 5000, "rounds": 500, "new_tokens": 1000}
    bounds |= {"term_after": MOST_SECONDS}
    for name, most in bounds.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= most:
            return f"--{name.replace('_', '-')} is {value:g}; allowed: above 0, up to {most:g}"
    if not 0 <= options.warm_up <= MOST_SECONDS:
        return f"--warm-up is {options.warm_up:g}; allowed: 0 up to {MOST_SECONDS:g}"
    if options.url:
        try:
            Target.parse(options.url)
        except NotHere as error:
            return str(error)
    return None


def _measure_url(options: argparse.Namespace) -> Measured:
    target = Target.parse(options.url, options.key)
    return _measure(options, target, listening_on(target.port))


def _measure_bundle(options: argparse.Namespace, bundle: Path) -> Measured:
    with served(bundle, options, overhead.PLAIN if options.overhead else None) as (url, pid):
        target = Target.parse(url)
        if not options.overhead:
            return _measure(options, target, pid)
        sizes = {"rounds": options.rounds, "new_tokens": options.new_tokens, "threads": options.threads}
        return overhead.measure(target, bundle, options.dtype, **sizes)


def _measure(options: argparse.Namespace, target: Target, pid: int | None) -> Measured:
    if options.term_after:
        assert pid is not None  # checked above: --leavers, --term-after and --overhead need a bundle
        sizes = {"after_s": options.term_after, "new_tokens": options.new_tokens}
        return asyncio.run(drain.run(target, options.clients, pid, **sizes))
    if options.leavers:
        return asyncio.run(leavers.run(target, options.leavers, at_once=options.at_once, within_s=options.within))
    if options.warm_up:  # long enough to fill the prefill cache, the last thing that grows
        before = run(target, options.clients, options.warm_up, new_tokens=options.new_tokens, seed=MOST_CLIENTS)
        asyncio.run(before)
    return asyncio.run(run(target, options.clients, options.seconds, new_tokens=options.new_tokens, pid=pid))


if __name__ == "__main__":
    sys.exit(main())
