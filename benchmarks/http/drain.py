"""SIGTERM under load: accepted requests finish, later ones are refused, the process ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.http.streams import Answer, Target, ask, generate_body

_HANG_S = 120.0
# Permitted outcomes of a request sent after the signal. The kernel may have completed a connection that the server
# never accepts: between the last accept and the close it is reset, which no server can prevent. An accepted connection
# may be closed before its request arrives. Neither has received a byte of an answer.
_LATER = {
    "completed", "refused", "status 503",
    *(f"unanswered: {name}" for name in ("ConnectionRefusedError", "ConnectionResetError", "IncompleteReadError")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """`before`, `after`: outcomes of requests sent before and after the signal. `ended_after_s`: seconds from the
    signal to the end of the process; None: it was still running after two minutes."""

    clients: int
    in_flight: int
    before: dict[str, int]
    after: dict[str, int]
    ended_after_s: float | None

    @property
    def lost(self) -> int:
        """Requests sent before the signal that were neither finished nor refused."""
        return sum(count for kind, count in self.before.items() if kind not in ("completed", "refused", "status 503"))

    @property
    def holds(self) -> bool:
        return self.lost == 0 and set(self.after) <= _LATER and self.ended_after_s is not None and self.in_flight > 0

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        def told(outcomes: dict[str, int]) -> str:
            return ", ".join(f"{kind} {count}" for kind, count in sorted(outcomes.items())) or "none"

        ended = "NOT within 120 s" if self.ended_after_s is None else f"{self.ended_after_s:.1f} s after SIGTERM"
        return [
            f"{self.clients} clients, {self.in_flight} requests in flight at SIGTERM",
            f"sent before      {told(self.before)}",
            f"sent after       {told(self.after)}",
            f"lost             {self.lost}",
            f"process ended    {ended}",
        ]


async def run(target: Target, clients: int, pid: int, *, after_s: float, new_tokens: int) -> Report:
    """`clients` concurrent streams against the process `pid`, which gets SIGTERM after `after_s`. Clients go on sending
    requests for one more second, at least one each."""
    outcomes: dict[str, Counter[str]] = {"before": Counter(), "after": Counter()}
    in_flight = 0
    signalled: float | None = None

    async def client(dice: random.Random) -> None:
        nonlocal in_flight
        begun_later = False
        while signalled is None or not begun_later or time.monotonic() < signalled + 1.0:
            begun_later = signalled is not None
            in_flight += 1
            try:
                async with asyncio.timeout(_HANG_S):
                    answer = await ask(target, generate_body(dice, new_tokens, stream=True))
            except TimeoutError:
                answer = Answer(error="hung")
            in_flight -= 1
            sent_later = signalled is not None and (answer.sent_at is None or answer.sent_at > signalled)
            outcomes["after" if sent_later else "before"][answer.kind] += 1
            if answer.kind != "completed":
                await asyncio.sleep(dice.uniform(0.1, 0.5))

    process = psutil.Process(pid)
    asking = [asyncio.create_task(client(random.Random(number))) for number in range(clients)]
    await asyncio.sleep(after_s)
    flying, signalled = in_flight, time.monotonic()
    os.kill(pid, signal.SIGTERM)
    await asyncio.gather(*asking)
    ended = await seconds_until_gone(process, signalled)
    return Report(clients, flying, dict(outcomes["before"]), dict(outcomes["after"]), ended)


async def seconds_until_gone(process: psutil.Process, since: float) -> float | None:
    """Seconds from `since` (`time.monotonic`) to the end of the process; None: it was still running after two
    minutes."""
    while time.monotonic() < since + _HANG_S:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)
                continue
        return time.monotonic() - since
    return None
