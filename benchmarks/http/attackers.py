"""Hostile clients of many kinds, run concurrently in one process by `benchmarks.siege`. Only against this machine.

    python -m benchmarks.http.attackers --url http://127.0.0.1:8000 --key KEY --seconds 60

Each kind has a fixed number of connections and a fixed pace, so that the attackers themselves use little of this
machine. The last line has counts of their outcomes as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.http.streams import NotHere, Target, connection, generate_body, get, head_of, prompt

MOST_SECONDS = 660.0
_SILENT = 1100  # connections; more than the default limit of open files of a process
_PATIENCE_S = 30.0  # per answer
_NICE = 10  # real attackers do not share the server's cores

_GARBAGE = (
    b"ZEBRAFISH\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000,
    b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /nope HTTP/1.1\r\nHost: elsewhere.example\r\nAuthorization: Bearer wrong\r\n\r\n",
)


class Siege:
    """State shared by all attackers."""

    def __init__(self, target: Target, seconds: float, objectives: Sequence[str], seed: int) -> None:
        self.target = target
        self.stranger = Target(target.host, target.port)  # without a key
        self.until = time.monotonic() + seconds
        self.objectives = objectives
        self.dice = random.Random(seed)
        self.tally = Counter[str]()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def again(self, kind: str, attack: Callable[[Siege], Awaitable[str]], pause_s: float) -> None:
        """Repeat the attack and count its outcomes."""
        await asyncio.sleep(self.dice.uniform(0, pause_s))
        while not self.over:
            try:
                outcome = await asyncio.wait_for(
                    attack(self), min(_PATIENCE_S, max(0.1, self.until - time.monotonic()))
                )
            except TimeoutError:
                outcome = "still open"
            except (OSError, asyncio.IncompleteReadError, ValueError):
                outcome = "cut"
            self.tally[f"{kind}: {outcome}"] += 1
            await asyncio.sleep(pause_s)


async def silent(siege: Siege) -> None:
    """Hold many idle connections, and replace those that are closed."""
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    while not siege.over:
        for reader, writer in list(held):
            if reader.at_eof():
                writer.close()
                held.remove((reader, writer))
                siege.tally["silent: cut"] += 1
        for _ in range(min(20, _SILENT - len(held))):  # 200 a second
            with suppress(OSError, TimeoutError):
                held.append(await asyncio.wait_for(asyncio.open_connection(siege.target.host, siege.target.port), 1.0))
        await asyncio.sleep(0.1)
    siege.tally["silent: still open"] += len(held)
    for _, writer in held:
        writer.transport.abort()


async def _trickle(target: Target, begun: bytes) -> str:
    async with connection(target) as (reader, writer):
        writer.write(begun)
        while not reader.at_eof():
            await asyncio.sleep(0.5)
            writer.write(b"x")
            await writer.drain()
        head = await reader.read(12)
        return head[9:].decode("latin-1") or "cut"


async def slow_head(siege: Siege) -> str:
    return await _trickle(siege.stranger, b"GET /livez HTTP/1.1\r\nX-Slow: ")


async def slow_body(siege: Siege) -> str:
    target = siege.dice.choice((siege.target, siege.stranger))
    head = target.request("POST", "/generate", {"prompt": "x" * 1000}).partition(b"\r\n\r\n")[0]
    return await _trickle(target, head + b"\r\n\r\n{")


async def _deaf(target: Target, sent: bytes, takes: int, seconds: float) -> str:
    """Read at most `takes` bytes per second from a socket with the smallest possible receive buffer."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.setblocking(False)
        await loop.sock_connect(sock, (target.host, target.port))
        with suppress(TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(sock, sent), 1.0)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if takes and not await loop.sock_recv(sock, takes):
                return "ended"
            await asyncio.sleep(1.0)
    return "still open"


async def deaf_to_answers(siege: Siege) -> str:
    return await _deaf(siege.target, b"".join([_keep_alive(siege.target)] * 200), takes=0, seconds=20)


def _keep_alive(target: Target) -> bytes:
    return target.request("GET", "/openapi.json").replace(b"Connection: close", b"Connection: keep-alive")


async def slow_reader(siege: Siege) -> str:
    body = generate_body(siege.dice, 1000, stream=True, exactly=True)
    return await _deaf(siege.target, siege.target.request("POST", "/generate", body), takes=200, seconds=25)


async def _post(target: Target, path: str, body: dict[str, Any]) -> str:
    async with connection(target) as (reader, writer):
        writer.write(target.request("POST", path, body))
        status, _ = await head_of(reader)
        await reader.read()
        return str(status)


async def greedy_sweep(siege: Siege) -> str:
    dice = siege.dice
    bodies: list[dict[str, Any]] = [
        {"prompts": [prompt(dice) for _ in range(300)], "resolution": 440},
        {"prompts": [prompt(dice) for _ in range(4096)], "weights": [{siege.objectives[0]: 1.0}]},
        {"prompts": [prompt(dice) for _ in range(16)], "resolution": 10, "max_new_tokens": 128, "min_new_tokens": 128},
    ]
    return await _post(siege.target, "/sweep", dice.choice(bodies))


async def endless_line(siege: Siege) -> str:
    ends = {name: {objective: 1.0} for name, objective in zip(("from", "to"), siege.objectives[-2:], strict=True)}
    body = {"prompt": prompt(siege.dice), **ends, "min_width": 1e-9, "max_new_tokens": 1024, "min_new_tokens": 1024}
    return await _post(siege.target, "/sweep/line", body)


async def long_prompt(siege: Siege) -> str:
    words = prompt(siege.dice)
    return await _post(siege.target, "/generate", {"prompt": (words + " ") * (240_000 // (len(words) + 1))})


async def leaver(siege: Siege) -> str:
    async with connection(siege.target) as (_, writer):
        body = generate_body(siege.dice, 200, stream=True, exactly=True)
        writer.write(siege.target.request("POST", "/generate", body))
        await asyncio.sleep(siege.dice.uniform(0, 0.5))
        writer.transport.abort()
    return "left"


async def garbage(siege: Siege) -> str:
    async with connection(siege.stranger) as (reader, writer):
        writer.write(siege.dice.choice(_GARBAGE))
        writer.write_eof()
        return (await reader.read(12))[9:].decode("latin-1") or "cut"


# kind -> (attack, number of concurrent attackers, maximum pause of each in seconds)
ATTACKS: dict[str, tuple[Callable[[Siege], Awaitable[str]], int, float]] = {
    "slow head": (slow_head, 40, 1.0),
    "slow body": (slow_body, 40, 1.0),
    "deaf to answers": (deaf_to_answers, 20, 1.0),
    "slow reader": (slow_reader, 6, 1.0),
    "greedy sweep": (greedy_sweep, 3, 0.2),
    "endless line": (endless_line, 2, 0.2),
    "long prompt": (long_prompt, 2, 0.2),
    "leaver": (leaver, 4, 0.2),
    "garbage": (garbage, 8, 0.2),
}


SILENT = "silent"
KINDS = (SILENT, *ATTACKS)


async def run(target: Target, seconds: float, kinds: Sequence[str] = KINDS, seed: int = 0) -> Counter[str]:
    """Run all of these kinds concurrently."""
    objectives = [each["name"] for each in json.loads((await get(target, "/objectives"))[1])["objectives"]]
    siege = Siege(target, seconds, objectives, seed)
    crowd = [silent(siege)] if SILENT in kinds else []
    for kind, (attack, at_once, pause_s) in ATTACKS.items():
        if kind in kinds:
            crowd += [siege.again(kind, attack, pause_s) for _ in range(at_once)]
    await asyncio.gather(*crowd)
    return siege.tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="server on this machine")
    parser.add_argument("--key", help="API key of the server")
    parser.add_argument("--seconds", type=float, default=10.0, help=f"duration, up to {MOST_SECONDS:g} (default 10)")
    parser.add_argument("--only", action="append", choices=KINDS, help="only this kind of attack; repeatable")
    options = parser.parse_args(argv)
    if not 0 < options.seconds <= MOST_SECONDS:
        parser.error(f"--seconds is {options.seconds:g}; allowed: above 0, up to {MOST_SECONDS:g}")
    try:
        target = Target.parse(options.url, options.key)
    except NotHere as error:
        parser.error(str(error))
    os.nice(_NICE)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tally = asyncio.run(run(target, options.seconds, options.only or KINDS))
    print(json.dumps(dict(sorted(tally.items()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
