"""A crowd of streaming clients against a running server: `python -m tests.http.load URL --clients 200 --seconds 60`.

Prints what `docs/operations.md` reports: how requests ended, first-token and inter-token times, memory of the server.
Every client asks again as soon as it has its answer; one that gets a 429 waits as long as it was told, at most 1 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPTS = (
    "I can't keep up at work and nobody seems to notice.",
    "My mother calls every day and I don't know how to say no.",
    "Since the accident I wake up at night and think of what could have happened.",
    "I stopped drinking, but the evenings are long.",
)
WEIGHTS = ({"reflection": 1.0}, {"reflection": 0.6, "empathy": 0.4}, {"empathy": 0.5, "fluency": 0.5}, {"fluency": 1.0})


@dataclass(slots=True)
class Tally:
    """What all clients saw. Times in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0


async def ask(host: str, port: int, body: dict[str, Any], tally: Tally) -> float:
    """One streamed request on a connection of its own; returns how long to wait before the next."""
    content = json.dumps(body).encode()
    started = last = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status = int((await reader.readline()).split()[1])
        headers = {}
        while (line := await reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if status != 200:
            tally.outcomes[str(status)] += 1
            return min(1.0, float(headers.get("retry-after", 0)))
        seen, end = 0, "cut"
        async for line in reader:
            if line.startswith(b'data: {"type":"token"'):
                now = time.perf_counter()
                (tally.between if seen else tally.first).append(now - (last if seen else started))
                last, seen = now, seen + 1
            elif line.startswith(b'data: {"type":"done"'):
                end = "completed"
            elif line.startswith(b'data: {"type":"error"'):
                end = "error event"
        tally.outcomes[end] += 1
        tally.tokens += seen
        return 0.0
    finally:
        writer.close()


async def crowd(host: str, port: int, clients: int, seconds: float, max_new_tokens: int) -> Tally:
    """`clients` of them for `seconds`; ends when every request that was begun has ended."""
    tally = Tally()
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        turn = 0
        while time.perf_counter() < until:
            body = {
                "prompt": PROMPTS[(number + turn) % 4], "weights": WEIGHTS[(number // 4 + turn) % 4], "stream": True,
                "temperature": 0.7, "seed": number * 1000 + turn, "max_new_tokens": max_new_tokens,
            }  # fmt: skip
            try:
                wait_s = await asyncio.wait_for(ask(host, port, body, tally), 120)
            except TimeoutError:
                tally.outcomes["hung"] += 1
                return
            except OSError as error:
                tally.outcomes[type(error).__name__] += 1
                wait_s = 0.1
            turn += 1
            await asyncio.sleep(wait_s)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return tally


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def resident_mib(pid: int) -> float:
    """Memory of a process that is really in use, from Linux's /proc."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def report(tally: Tally, seconds: float) -> dict[str, Any]:
    def milliseconds(values: Sequence[float]) -> dict[str, float]:
        return {name: round(percentile(values, part) * 1000, 1) for name, part in (("p50", 0.5), ("p99", 0.99))}

    return {
        "outcomes": dict(tally.outcomes),
        "tokens_per_s": round(tally.tokens / seconds, 1),
        "first_token_ms": milliseconds(tally.first),
        "inter_token_ms": milliseconds(tally.between),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="http://HOST:PORT")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1, help="report after each; memory should not grow between them")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--pid", type=int, help="of the server, to report its memory")
    args = parser.parse_args()
    host, _, port = args.url.removeprefix("http://").rstrip("/").partition(":")
    for _ in range(args.rounds):
        began = time.perf_counter()
        tally = asyncio.run(crowd(host, int(port), args.clients, args.seconds, args.max_new_tokens))
        result = report(tally, time.perf_counter() - began)
        if args.pid is not None:
            result["resident_mib"] = round(resident_mib(args.pid), 1)
        print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
