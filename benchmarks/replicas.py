"""Ray Serve replicas under load: killing one, deploying a new bundle, scaling down. Needs the extra `ray`.

    python -m benchmarks.replicas --bundle my-bundle --clients 100 --seconds 60
    python -m benchmarks.replicas --bundle my-bundle --kill-after 20
    python -m benchmarks.replicas --bundle my-bundle --roll-to my-new-bundle --change-after 20
    python -m benchmarks.replicas --bundle my-bundle --scale-to 1 --change-after 20

Starts `emorl deploy` with two replicas of one core each, and stops it at the end. Exit code 1: a check failed. Every
request must be completed or refused (429), except those in a killed replica, which end with an error that the client
sees; none hangs; a killed replica is replaced; a new bundle or fewer replicas fail no request. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from benchmarks.http.streams import Target
from benchmarks.load import MOST_CLIENTS, MOST_SECONDS, Report, keep_asking

_STARTS = 3
_HANG_S = 180.0
_SETTLED_WITHIN_S = 300.0
_ENDED_WITHIN_S = 300.0
_REPLICA, _SCORER = "ServeReplica:emorl:server", "ServeReplica:emorl:scorers"  # Ray's names for their processes
_SEEN_TO_END = ("connection", "unanswered", "cut short", "status 5")


class NotInOrder(RuntimeError):
    """`emorl deploy` failed at the end, or left processes behind."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """An `emorl deploy` with its own Ray instance; `environment`: for every command that refers to it."""

    target: Target
    process: subprocess.Popen[str]
    environment: dict[str, str]
    options: tuple[str, ...]  # of each deployment

    def replicas(self) -> set[int]:
        """Process ids."""
        return self._named(_REPLICA)

    def scorers(self) -> set[int]:
        """Process ids."""
        return self._named(_SCORER)

    def _named(self, name: str) -> set[int]:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return {each.pid for each in below if name in " ".join(_command_line(each))}

    async def again(self, bundle: Path, replicas: int) -> str | None:
        """Replace the deployment by this one; returns the fault if that fails."""
        command = [*_command(bundle, replicas, self.options), "--ray", "auto"]
        again = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment
        )
        code = await again.wait()
        return None if code == 0 else f"emorl deploy {bundle} --replicas {replicas} ended with {code}"

    async def settled(self, holds: Callable[[set[int]], bool], what: str) -> str | None:
        """Wait until `holds` is true for the replicas' process ids; returns the fault if it never is."""
        begun = time.monotonic()
        while not holds(self.replicas()):
            if time.monotonic() - begun > _SETTLED_WITHIN_S:
                return f"{what}: not within {_SETTLED_WITHIN_S:g} s"
            await asyncio.sleep(0.5)
        return None


def _command(bundle: Path, replicas: int, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "emorl_cli", "deploy", str(bundle), "--replicas", str(replicas), *options]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def deployed(bundle: Path, replicas: int, slots: int, *more: str) -> Iterator[Deployed]:
    """`emorl deploy` on a free port; `more`: its options. Raises `NotInOrder` at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short, for sockets
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        options = ("--port", str(port), "--slots", str(slots), "--queue-timeout-s", "600", *more)
        process = _started(_command(bundle, replicas, options), environment)
        try:
            yield Deployed(Target("127.0.0.1", port), process, environment, options)
        finally:
            _end(process)


def _started(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the command, again if Ray gives up after 30 s, as it can on a busy machine."""
    for _ in range(_STARTS):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        if any(line.startswith("serving on ") for line in process.stdout):
            return process
        process.communicate()
    raise SystemExit("emorl deploy did not start: see above")


def _end(process: subprocess.Popen[str]) -> None:
    every = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    process.communicate(timeout=_ENDED_WITHIN_S)
    _, left = psutil.wait_procs(every, timeout=30)
    for each in left:
        each.kill()
    if left or process.returncode:
        raise NotInOrder(f"emorl deploy ended with {process.returncode}; {len(left)} processes were left")


async def kill_one(at: Deployed) -> str | None:
    """SIGKILL one replica; returns the fault if no other replaces it."""
    before = at.replicas()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    return await at.settled(lambda now: victim not in now and len(now) >= len(before), "another replica")


async def roll(at: Deployed, bundle: Path, replicas: int) -> str | None:
    """Deploy a new bundle; returns the fault if an old replica remains."""
    before = at.replicas()
    return await at.again(bundle, replicas) or await at.settled(
        lambda now: not now & before and len(now) == replicas, "only replicas of the new bundle"
    )


async def scale(at: Deployed, bundle: Path, replicas: int) -> str | None:
    """Deploy the same bundle with another number of replicas; returns the fault if that is not reached."""
    return await at.again(bundle, replicas) or await at.settled(
        lambda now: len(now) == replicas, f"{replicas} replica(s)"
    )


async def under_load(
    at: Deployed, change: Callable[[], Awaitable[str | None]] | None, options: argparse.Namespace
) -> tuple[Report, list[str]]:
    """The clients' observations during the change, and the failed checks. The load lasts `seconds`, or until the change
    is complete if that takes longer."""
    report = Report(options.clients, options.seconds)
    end = time.monotonic() + options.seconds
    changing = asyncio.create_task(_later(change, options.change_after))

    def left_s() -> float:
        return max(end - time.monotonic(), 0.0 if changing.done() else 1.0)

    def client(number: int) -> Awaitable[None]:
        sizes = {"new_tokens": options.new_tokens, "hang_s": _HANG_S}
        return keep_asking(at.target, Random(number), left_s, report, **sizes)

    fault, *_ = await asyncio.gather(changing, *(client(number) for number in range(options.clients)))
    return report, [] if fault is None else [fault]


async def _later(change: Callable[[], Awaitable[str | None]] | None, after_s: float) -> str | None:
    if change is None:
        return None
    await asyncio.sleep(after_s)
    begun = time.monotonic()
    fault = await change()
    print(f"changed in       {time.monotonic() - begun:.1f} s", flush=True)
    return fault


def faults(report: Report, clients: int, *, killed: bool) -> list[str]:
    """Forbidden outcomes, one line each."""
    ended = {kind: count for kind, count in report.outcomes.items() if killed and kind.startswith(_SEEN_TO_END)}
    found = [
        f"{count} requests: {kind}"
        for kind, count in report.outcomes.items()
        if kind not in ("completed", "refused") and kind not in ended
    ]
    if sum(ended.values()) > clients:  # a client has one request at a time
        found.append(f"{sum(ended.values())} requests ended with one replica; {clients} were in progress")
    if not report.outcomes["completed"]:
        found.append("no request was completed")
    return found


def _change(options: argparse.Namespace, at: Deployed) -> Callable[[], Awaitable[str | None]] | None:
    if options.kill_after is not None:
        options.change_after = options.kill_after
        return lambda: kill_one(at)
    if options.roll_to is not None:
        return lambda: roll(at, options.roll_to, options.replicas)
    if options.scale_to is not None:
        return lambda: scale(at, options.bundle, options.scale_to)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bundle", type=Path, required=True, help="bundle folder to serve")
    made.add_argument(
        "--clients", type=int, default=100, help=f"concurrent clients, up to {MOST_CLIENTS} (default 100)"
    )
    made.add_argument(
        "--seconds", type=float, default=60.0, help=f"minimum duration, up to {MOST_SECONDS:g} (default 60)"
    )
    made.add_argument("--new-tokens", type=int, default=32, help="tokens per request (default 32)")
    made.add_argument("--replicas", type=int, default=2, help="number of replicas (default 2)")
    made.add_argument("--slots", type=int, default=16, help="slots per replica (default 16)")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--kill-after", type=float, help="kill -9 one replica after this many seconds")
    what.add_argument("--roll-to", type=Path, help="deploy this bundle under load")
    what.add_argument("--scale-to", type=int, help="change to this number of replicas under load")
    made.add_argument(
        "--change-after",
        type=float,
        default=10.0,
        help="seconds before --roll-to or --scale-to takes effect (default 10)",
    )
    options = made.parse_args(argv)
    if not (0 < options.clients <= MOST_CLIENTS and 0 < options.seconds <= MOST_SECONDS):
        made.error(f"--clients: up to {MOST_CLIENTS}; --seconds: up to {MOST_SECONDS:g}")
    with deployed(options.bundle, options.replicas, options.slots) as at:
        change = _change(options, at)
        report, found = asyncio.run(under_load(at, change, options))
    found += faults(report, options.clients, killed=options.kill_after is not None)
    shown = [line for line in report.lines() if not line.startswith("FAULT")]
    print("\n".join([*shown, *(f"FAULT            {fault}" for fault in found)]))
    print(json.dumps({"holds": not found, **report.facts()}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
