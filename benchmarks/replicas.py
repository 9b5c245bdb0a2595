"""Replicas by Ray Serve under load: a replica that is killed, a bundle that is rolled. Needs the extra `ray`.

    python -m benchmarks.replicas --bundle my-bundle --clients 100 --seconds 60
    python -m benchmarks.replicas --bundle my-bundle --kill-after 20
    python -m benchmarks.replicas --bundle my-bundle --roll-to my-new-bundle --roll-after 20

Starts `emorl deploy` with two replicas of one core and stops it again. Exit code 1: something that must hold did not:
every request is completed or refused (429), but for those in a killed replica, which end with an error that a client
sees; none hangs; a killed replica is replaced; a new bundle costs no request. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil

from benchmarks.load import MOST_CLIENTS, MOST_SECONDS, Report
from benchmarks.streams import Answer, Target, ask, generate_body

_HANG_S = 180.0
_REPLACED_WITHIN_S = 180.0
_REPLICA = "ServeReplica:emorl"


@contextmanager
def deployed(bundle: Path, replicas: int, slots: int) -> Iterator[tuple[Target, subprocess.Popen[str]]]:
    """`emorl deploy` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "emorl_cli", "deploy", str(bundle), "--replicas", str(replicas)]
    command += ["--port", str(port), "--slots", str(slots), "--queue-timeout-s", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("serving on "):
                    break
            else:
                raise SystemExit("emorl deploy did not start: see above")
            yield Target("127.0.0.1", port), process
        finally:
            process.terminate()


def replica_pids(deploy: subprocess.Popen[str]) -> set[int]:
    """Processes of replicas below `emorl deploy`. Ray names them in their command line."""
    below = psutil.Process(deploy.pid).children(recursive=True)
    return {each.pid for each in below if _REPLICA in " ".join(_command(each))}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def load(target: Target, clients: int, seconds: float, new_tokens: int, report: Report) -> None:
    """Each client sends its next request when it has its answer."""
    end = time.monotonic() + seconds

    async def client(dice: Random) -> None:
        while time.monotonic() < end:
            try:
                answer = await asyncio.wait_for(ask(target, generate_body(dice, new_tokens, stream=True)), _HANG_S)
            except TimeoutError:
                answer = Answer(error=f"no end within {_HANG_S:g} s")
            report.add(answer)
            if answer.kind != "completed":
                await asyncio.sleep(dice.uniform(0.5, 1.5))

    await asyncio.gather(*(client(Random(number)) for number in range(clients)))


async def kill_one(deploy: subprocess.Popen[str], after_s: float) -> str | None:
    """SIGKILL one replica; the fault when no other takes its place."""
    await asyncio.sleep(after_s)
    before = replica_pids(deploy)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    begun = time.monotonic()
    while time.monotonic() - begun < _REPLACED_WITHIN_S:
        now = replica_pids(deploy)
        if victim not in now and len(now) >= len(before):
            print(f"replaced after   {time.monotonic() - begun:.1f} s", flush=True)
            return None
        await asyncio.sleep(0.5)
    return f"a killed replica was not replaced within {_REPLACED_WITHIN_S:g} s"


async def roll(bundle: Path, target: Target, slots: int, after_s: float) -> str | None:
    """Deploy another bundle on the same cluster; the fault when that fails."""
    await asyncio.sleep(after_s)
    command = [sys.executable, "-m", "emorl_cli", "deploy", str(bundle), "--replicas", "2", "--ray", "auto"]
    command += ["--port", str(target.port), "--slots", str(slots), "--queue-timeout-s", "600"]
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    code = await process.wait()
    print(f"rolled in        {time.monotonic() - begun:.1f} s", flush=True)
    return None if code == 0 else f"emorl deploy of {bundle} ended with {code}"


async def measure(
    options: argparse.Namespace, target: Target, deploy: subprocess.Popen[str]
) -> tuple[Report, list[str]]:
    report = Report(options.clients, options.seconds)
    beside = []
    if options.kill_after is not None:
        beside.append(kill_one(deploy, options.kill_after))
    if options.roll_to is not None:
        beside.append(roll(options.roll_to, target, options.slots, options.roll_after))
    work = load(target, options.clients, options.seconds, options.new_tokens, report)
    _, *found = await asyncio.gather(work, *beside)
    allowed = {"completed", "refused"}
    if options.kill_after is not None:  # what was in it ends, and is seen to end
        allowed |= {
            kind for kind in report.outcomes if kind.startswith(("connection", "unanswered", "cut", "status 5"))
        }
    faults = [fault for fault in found if fault is not None]
    faults += [f"{count} requests: {kind}" for kind, count in report.outcomes.items() if kind not in allowed]
    if not report.outcomes["completed"]:
        faults.append("no request was completed")
    return report, faults


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bundle", type=Path, required=True)
    made.add_argument("--clients", type=int, default=100)
    made.add_argument("--seconds", type=float, default=60.0)
    made.add_argument("--new-tokens", type=int, default=32)
    made.add_argument("--replicas", type=int, default=2)
    made.add_argument("--slots", type=int, default=16)
    made.add_argument("--kill-after", type=float, help="kill -9 of one replica, so many seconds into the load")
    made.add_argument("--roll-to", type=Path, help="another bundle, deployed while the load runs")
    made.add_argument("--roll-after", type=float, default=10.0, help="seconds into the load (default 10)")
    options = made.parse_args(argv)
    if not (0 < options.clients <= MOST_CLIENTS and 0 < options.seconds <= MOST_SECONDS):
        made.error(f"--clients: up to {MOST_CLIENTS}; --seconds: up to {MOST_SECONDS:g}")
    with deployed(options.bundle, options.replicas, options.slots) as (target, deploy):
        report, faults = asyncio.run(measure(options, target, deploy))
    shown = [line for line in report.lines() if not line.startswith("FAULT")]
    print("\n".join([*shown, *(f"FAULT            {fault}" for fault in faults)]))
    print(json.dumps({"holds": not faults, **report.facts()}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
