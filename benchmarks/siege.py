"""A server under attack: whether ten well-behaved streams and the probes are affected. Only against this machine.

    python -m benchmarks.siege --bundle my-bundle
    python -m benchmarks.siege --seconds 10 --json

It starts `emorl serve` with 1,024 file descriptors and two API keys, and `benchmarks.http.attackers` attacks it with
one of them for ten seconds. Ten streams run with the other key, first alone and then during the attack, and the server
is terminated during a last attack. Without `--bundle` a tiny random one is made. Exit code 1: a check failed. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import load
from benchmarks.http import attackers, drain
from benchmarks.http.streams import Target, get
from benchmarks.make_bundle import write_bundle

MOST_SECONDS = 600.0
_SLOWER = 3.0  # allowed factor on the p99 gap between tokens, relative to the calm phase
_PROBE_S = 1.0
_LOG_BYTES = 1_000_000
_GROWTH, _GROWTH_MIB = 0.1, 32.0  # allowed growth of memory after the siege, whichever is more
_DESCRIPTORS = 1024  # the usual limit
# Seconds; no phase takes longer than the siege itself.
_BURST_S = 10.0
_ARRIVAL_S = 2.0  # until all attackers are connected
_TAIL_S = 10.0  # how much longer the attackers run than the streams
_REST_S = 3.0  # after the siege, before memory is read
_LAST_S = 5.0  # of the last attack, before SIGTERM
_DRAIN = {"drain-timeout-s": 10, "last-bytes-s": 5, "log-flush-s": 2}
_DEADLINE_S = 10.0 + sum(_DRAIN.values())  # including the engine's 10 s, as in docs/operations.md
# The burst before the calm phase fills this cache; a bounded cache that is not yet full would look like a leak.
_CACHE_BYTES = 8 * 2**20
_SERVER = {
    **_DRAIN,
    "prefill-cache-bytes": _CACHE_BYTES,
    "log-level": "info",
    "queue-timeout-s": 30,
    "max-concurrent-per-key": 16,
}


@dataclass(slots=True)
class Probes:
    """`GET /livez` and `/readyz`, each ten times per second."""

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    async def watch(self, target: Target) -> None:
        while True:
            for path in ("/livez", "/readyz"):
                begun = time.perf_counter()
                try:
                    async with asyncio.timeout(5 * _PROBE_S):
                        status, _ = await get(target, path)
                    if status != 200:
                        self.failed[f"{path} {status}"] += 1
                except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                    self.failed[f"{path} {type(error).__name__}"] += 1
                self.seconds.append(time.perf_counter() - begun)
            await asyncio.sleep(0.1)


@dataclass(slots=True)
class Report:
    """The observations. Memory in MiB: after the calm phase, at most during the siege, after it."""

    calm: load.Report
    siege: load.Report
    probes: Probes
    memory: tuple[float, float, float]
    log_bytes: int
    ended_after_s: float | None
    attacks: dict[str, int]

    @property
    def gaps_ms(self) -> dict[str, tuple[float, float]]:
        """p50 and p99 of the gaps between tokens of the well-behaved streams."""
        both = {"calm": self.calm.gaps_s, "siege": self.siege.gaps_s}
        return {name: (_ms(gaps, 50), _ms(gaps, 99)) for name, gaps in both.items()}

    @property
    def ratio(self) -> float:
        return self.gaps_ms["siege"][1] / self.gaps_ms["calm"][1]

    def faults(self) -> list[str]:
        """Failed checks, one line each."""
        before, _, after = self.memory
        found = [f"{count} streams: {kind}" for kind, count in self.siege.outcomes.items() if kind not in _ALLOWED]
        found += [f"{count} probes: {kind}" for kind, count in self.probes.failed.items()]
        if not self.siege.outcomes["completed"]:
            found.append("no stream was completed during the siege")
        elif self.ratio > _SLOWER:
            found.append(f"gaps between tokens were {self.ratio:.1f} times as long, at most {_SLOWER:g} are allowed")
        if max(self.probes.seconds) > _PROBE_S:
            found.append(f"a probe took {max(self.probes.seconds):.2f} s, at most {_PROBE_S:g} are allowed")
        if after - before > max(_GROWTH_MIB, _GROWTH * before):
            found.append(f"memory grew from {before:.0f} to {after:.0f} MiB")
        if self.log_bytes > _LOG_BYTES:
            found.append(f"the log has {self.log_bytes:,} bytes, at most {_LOG_BYTES:,} are allowed")
        if self.ended_after_s is None or self.ended_after_s > _DEADLINE_S:
            found.append(f"the process did not end within {_DEADLINE_S:g} s of SIGTERM")
        return found

    def lines(self) -> list[str]:
        gaps, probes = self.gaps_ms, sorted(self.probes.seconds)
        before, peak, after = self.memory
        ended = "not at all" if self.ended_after_s is None else f"{self.ended_after_s:.1f} s after SIGTERM"
        return [
            f"{self.siege.clients} streams that behave, {self.siege.seconds:g} s alone and as long besieged",
            f"attacks          {', '.join(f'{kind} {count}' for kind, count in self.attacks.items())}",
            f"streams          {_told(self.calm.outcomes)}; besieged: {_told(self.siege.outcomes)}",
            f"between tokens   p50 {gaps['calm'][0]:.1f} ms   p99 {gaps['calm'][1]:.1f} ms",
            f"        besieged p50 {gaps['siege'][0]:.1f} ms   p99 {gaps['siege'][1]:.1f} ms   {self.ratio:.2f} times",
            f"probes           {len(probes)}: p50 {_ms(probes, 50):.0f} ms   p99 {_ms(probes, 99):.0f} ms   "
            f"longest {probes[-1] * 1e3:.0f} ms",
            f"memory           {before:.0f} MiB before, {peak:.0f} at most, {after:.0f} after",
            f"log              {self.log_bytes:,} bytes",
            f"process ended    {ended} (deadline {_DEADLINE_S:g} s)",
            *(f"FAULT            {fault}" for fault in self.faults()),
        ]

    def facts(self) -> dict[str, Any]:
        return {
            "streams": self.siege.clients,
            "seconds": self.siege.seconds,
            "holds": not self.faults(),
            "faults": self.faults(),
            "gaps_ms": self.gaps_ms,
            "ratio": self.ratio,
            "calm": dict(self.calm.outcomes),
            "siege": dict(self.siege.outcomes),
            "probe_ms": {p: _ms(self.probes.seconds, p) for p in (50, 99, 100)},
            "memory_mib": [round(mib, 1) for mib in self.memory],
            "log_bytes": self.log_bytes,
            "ended_after_s": self.ended_after_s,
            "deadline_s": _DEADLINE_S,
            "attacks": self.attacks,
        }


_ALLOWED = ("completed", "refused")


def _ms(seconds: Sequence[float], p: int) -> float:
    return load.percentile(seconds, p) * 1e3 if seconds else float("nan")


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(outcomes.items())) or "none"


async def run(
    good: Target,
    bad: Target,
    pid: int,
    log: Path,
    *,
    streams: int,
    seconds: float,
    new_tokens: int,
    kinds: Sequence[str] = attackers.KINDS,
) -> Report:
    """A burst, a calm phase, the siege, a rest, and SIGTERM to the process `pid` under another attack.

    The burst fills bounded caches (prompts, the library's kernels for each number of rows), so that memory before and
    after the siege shows whether it keeps growing.
    """
    process = psutil.Process(pid)
    longest = (_BURST_S, _ARRIVAL_S, _TAIL_S, _REST_S, _LAST_S)
    burst, arrival, tail, rest, last = (min(most, seconds) for most in longest)
    with _besieged(bad, burst, kinds):
        await asyncio.sleep(burst)
    await asyncio.sleep(rest)
    calm = await load.run(good, streams, seconds, new_tokens=new_tokens, pid=pid)
    before = load.resident_mib(process)
    probes = Probes()
    with _besieged(bad, arrival + seconds + tail, kinds) as crowd:
        await asyncio.sleep(arrival)
        watch = asyncio.create_task(probes.watch(good))
        siege = await load.run(good, streams, seconds, new_tokens=new_tokens, pid=pid, seed=streams)
        watch.cancel()
        attacks = json.loads((await asyncio.to_thread(crowd.communicate))[0])
    await asyncio.sleep(rest)
    after, log_bytes = load.resident_mib(process), log.stat().st_size
    with _besieged(bad, _DEADLINE_S + 10, kinds):
        await asyncio.sleep(last)
        signalled = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        ended = await drain.seconds_until_gone(process, signalled)
    return Report(calm, siege, probes, (before, max(siege.rss_mib), after), log_bytes, ended, attacks)


@contextmanager
def _besieged(target: Target, seconds: float, kinds: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """The attackers, in a separate process."""
    options = {"url": f"http://{target.host}:{target.port}", "key": target.key, "seconds": seconds}
    command = [sys.executable, "-m", "benchmarks.http.attackers"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += [part for kind in kinds for part in ("--only", kind)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as crowd:
        try:
            yield crowd
        finally:
            crowd.kill()


def _few_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, most), most))


def measure(bundle: Path, options: argparse.Namespace, log: Path) -> Report:
    """Start a server for the bundle, with its log in the file `log`, and attack it."""
    keys = [secrets.token_hex(8) for _ in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "EMORL_API_KEYS": ",".join(keys)}
    with log.open("wb") as stderr:
        process: dict[str, Any] = {"env": environment, "stderr": stderr, "preexec_fn": _few_descriptors}
        with load.served(bundle, options, _SERVER, **process) as (url, pid):
            good, bad = (Target.parse(url, key) for key in keys)
            sizes = {"streams": options.streams, "seconds": options.seconds, "new_tokens": options.new_tokens}
            return asyncio.run(run(good, bad, pid, log, **sizes, kinds=options.only or attackers.KINDS))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bundle", type=Path, help="bundle folder to serve (default: a new tiny one)")
    made.add_argument(
        "--seconds", type=float, default=60.0, help=f"duration of the attack, up to {MOST_SECONDS:g} (default 60)"
    )
    made.add_argument("--streams", type=int, default=10, help="well-behaved streams, up to 16 (default 10)")
    made.add_argument("--new-tokens", type=int, default=64, help="maximum tokens per stream (default 64)")
    made.add_argument("--only", action="append", choices=attackers.KINDS, help="only this kind of attack; repeatable")
    made.add_argument("--json", action="store_true", help="print only the JSON line")
    made.add_argument("--slots", type=int, default=16, help="the server's slots (default 16)")
    made.add_argument("--max-queue", type=int, default=64, help="the server's max_queue (default 64)")
    made.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="number format (default auto)"
    )
    made.add_argument("--threads", type=int, default=1, help="the server's CPU threads (default 1)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    for name, most in {"seconds": MOST_SECONDS, "streams": 16, "new_tokens": 1000}.items():
        if not 0 < getattr(options, name) <= most:
            flag = name.replace("_", "-")
            print(f"benchmarks.siege: error: --{flag} is {getattr(options, name):g}; allowed: above 0, up to {most:g}",
                  file=sys.stderr)  # fmt: skip
            return 2
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or write_bundle(Path(folder) / "bundle", "t5-tiny")
        report = measure(bundle, options, Path(folder) / "log")
    if not options.json:
        print("\n".join(report.lines()))
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": options.threads}
    print(json.dumps({"machine": machine, **report.facts()}))
    return 1 if report.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
