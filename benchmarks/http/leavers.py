"""Clients that disconnect at random times: while queued, during prefill, while streaming, or before a non-streamed
answer. Afterwards the server must have released everything."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.http.streams import (
    IDLE,
    Target,
    connection,
    events,
    gauges,
    generate_body,
    get,
    head_of,
    seconds_until_idle,
)

KINDS = ("at once", "before the first byte", "while streaming", "a plain answer")
MOMENTS = (*KINDS, "at the first byte")  # the answer started before the client left
_PATIENCE_S = 120.0  # per client; a server that takes longer hangs


@dataclass(frozen=True, slots=True)
class Report:
    """`left`: moment -> clients. `free_after_s`: seconds from the last disconnection until everything is free; None:
    not within the time allowed."""

    left: dict[str, int]
    refused: int
    outcomes: dict[str, float]
    free_after_s: float | None
    still_held: dict[str, float]
    next_status: int

    @property
    def holds(self) -> bool:
        return self.free_after_s is not None and self.next_status == 200 and set(self.left) <= set(MOMENTS)

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        told = ", ".join(f"{count} {moment}" for moment, count in sorted(self.left.items()))
        free = f"after {self.free_after_s:.2f} s" if self.free_after_s is not None else f"NOT: {self.still_held}"
        return [
            f"left                      {told}",
            f"refused and tried again   {self.refused}",
            f"outcomes on the server    {', '.join(f'{name} {n:g}' for name, n in self.outcomes.items() if n)}",
            f"everything free           {free}",
            f"next request              status {self.next_status}",
        ]


async def leave(target: Target, kind: str, dice: random.Random, new_tokens: int) -> str:
    """Send one long request and disconnect; returns the moment, or `refused`."""
    body = generate_body(dice, new_tokens, stream=kind != "a plain answer", exactly=True)
    stays_s = {"at once": 0.0, "before the first byte": dice.uniform(0, 0.3), "a plain answer": dice.uniform(0, 1.0)}
    tokens = dice.randint(1, 8)
    async with connection(target) as (reader, writer):
        writer.write(target.request("POST", "/generate", body))
        await writer.drain()
        moment = kind
        if kind == "while streaming":
            status, _ = await head_of(reader)
            if status != 200:
                return "refused"
            async for event in events(reader):
                tokens -= event.startswith(b'{"type":"token"')
                if tokens == 0:
                    break
            else:
                moment = "the stream ended early"
        else:
            with suppress(TimeoutError):
                status, _ = await asyncio.wait_for(head_of(reader), stays_s[kind])
                if status != 200:
                    return "refused"
                moment = "at the first byte"
        if dice.random() < 0.5:
            writer.transport.abort()  # a reset instead of an orderly close
    return moment


async def run(
    target: Target, leavers: int, *, at_once: int = 48, new_tokens: int = 400, within_s: float = 1.0, seed: int = 7
) -> Report:
    """`leavers` clients, `at_once` of them concurrently; a refused client tries again."""
    dice = random.Random(seed)
    before = await gauges(target)
    limits = json.loads((await get(target, "/info"))[1])["limits"]
    new_tokens = min(new_tokens, limits["max_new_tokens"])
    places = asyncio.Semaphore(at_once)
    left: Counter[str] = Counter()
    refused = 0
    last = 0.0

    async def one(kind: str, own: random.Random) -> None:
        nonlocal refused, last
        async with places:
            for _ in range(100):
                try:
                    moment = await asyncio.wait_for(leave(target, kind, own, new_tokens), _PATIENCE_S)
                except TimeoutError:
                    moment = "hung"
                except (OSError, asyncio.IncompleteReadError):
                    moment = "the server broke off"
                if moment != "refused":
                    break
                refused += 1
                await asyncio.sleep(own.uniform(0.05, 0.3))
            left[moment] += 1
            last = time.perf_counter()

    await asyncio.gather(*(one(dice.choice(KINDS), random.Random(dice.random())) for _ in range(leavers)))
    asked = time.perf_counter()
    free = await seconds_until_idle(target, within_s)
    after = await gauges(target)
    return Report(
        left=dict(left),
        refused=refused,
        outcomes=_outcomes(before, after),
        free_after_s=None if free is None else free + asked - last,
        still_held={name: after[name] for name in IDLE if after[name]},
        next_status=await _next(target, dice),
    )


def _outcomes(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    marker = 'emorl_requests_total{outcome="'
    return {
        name.removeprefix(marker).split('"')[0]: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.startswith(marker) and 'route="/generate"' in name
    }


async def _next(target: Target, dice: random.Random) -> int:
    body: dict[str, Any] = generate_body(dice, 4, stream=False)
    async with connection(target) as (reader, writer):
        writer.write(target.request("POST", "/generate", body))
        status, _ = await asyncio.wait_for(head_of(reader), _PATIENCE_S)
    return status
