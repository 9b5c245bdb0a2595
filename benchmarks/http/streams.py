"""A minimal HTTP client for streams, so that its own cost does not show in its timings. Only for servers on this
machine."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

HERE = ("127.0.0.1", "localhost")
_WORDS = (
    "I feel tired of my work and worried about family nobody listens at home cannot sleep since left job mother drinks "
    "again money is short friends are gone it hurts to start over want a change but do not know how hope is small"
).split()


class NotHere(ValueError):
    """The target is not on this machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address, with an optional API key."""

    host: str
    port: int
    key: str | None = None

    @classmethod
    def parse(cls, url: str, key: str | None = None) -> Target:
        """Raises `NotHere` for everything but http://127.0.0.1:PORT."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname not in HERE or parts.path.strip("/"):
            raise NotHere(f"url is {url!r}; allowed: http://127.0.0.1:PORT, since load is for this machine only")
        return cls("127.0.0.1", parts.port or 80, key)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The bytes of one request that uses its own connection."""
        content = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.host}",
            "Connection: close",
            f"Content-Length: {len(content)}",
        ]
        if body is not None:
            head.append("Content-Type: application/json")
        if self.key is not None:
            head.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*head, "", ""]).encode() + content


@dataclass(slots=True)
class Answer:
    """The outcome of one request. Times are in seconds; `gaps` are between tokens as they arrived."""

    status: int = 0
    retry_after_s: float | None = None
    sent_at: float | None = None  # time.monotonic()
    first_token_s: float | None = None
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    done: bool = False
    error: str | None = None

    @property
    def kind(self) -> str:
        """`completed`, `refused` (429), or an error, which must not occur."""
        if self.status == 429:
            return "refused"
        if self.status == 200 and self.done:
            return "completed"
        return self.error or (f"status {self.status}" if self.status != 200 else "cut short")


def prompt(dice: random.Random) -> str:
    """About ten random words, so that no prefill cache has the prompt."""
    return " ".join(dice.choices(_WORDS, k=dice.randint(6, 14)))


def generate_body(dice: random.Random, new_tokens: int, *, stream: bool, exactly: bool = False) -> dict[str, Any]:
    """A request to the default profile; `exactly`: no end of sequence before `new_tokens`."""
    return {
        "prompt": prompt(dice),
        "stream": stream,
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens if exactly else 0,
        "temperature": 1.0,
        "seed": dice.randrange(2**31),
    }


@asynccontextmanager
async def connection(target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def head_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers (names in lower case)."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of a chunked body."""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events, without comments."""
    rest = b""
    async for chunk in chunks(reader):
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[6:]


async def ask(target: Target, body: dict[str, Any]) -> Answer:
    """`POST /generate` as a stream, timed from just before it is sent."""
    answer = Answer()
    try:
        async with connection(target) as (reader, writer):
            sent = last = time.perf_counter()
            writer.write(target.request("POST", "/generate", body))
            answer.sent_at = time.monotonic()
            answer.status, headers = await head_of(reader)
            if answer.status != 200:
                answer.retry_after_s = float(headers.get("retry-after", "nan"))
                return answer
            async for event in events(reader):
                now = time.perf_counter()
                if event == b"[DONE]":
                    continue
                payload = json.loads(event)
                if payload["type"] == "token":
                    if answer.first_token_s is None:
                        answer.first_token_s = now - sent
                    else:
                        answer.gaps.append(now - last)
                    last = now
                    answer.tokens += 1
                    answer.token_ids.append(payload["id"])
                elif payload["type"] == "done":
                    answer.done = True
                else:
                    answer.error = f"error event: {payload['error']['code']}"
    except (OSError, asyncio.IncompleteReadError) as error:
        answer.error = f"{'connection' if answer.status else 'unanswered'}: {type(error).__name__}"
    return answer


async def get(target: Target, path: str) -> tuple[int, str]:
    """A plain GET: status and text."""
    async with connection(target) as (reader, writer):
        writer.write(target.request("GET", path))
        status, _ = await head_of(reader)
        return status, (await reader.read()).decode()


async def gauges(target: Target) -> dict[str, float]:
    """Every sample of `/metrics` that is not part of a histogram; labels stay in the name."""
    _, text = await get(target, "/metrics")
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines if "_bucket{" not in name}


IDLE = ("emorl_requests_running", "emorl_requests_waiting", "emorl_requests_admitted", "emorl_kv_slots_used")


async def seconds_until_idle(target: Target, within_s: float) -> float | None:
    """Seconds until nothing is running or waiting, and all slots and permits are free; None if it takes longer than
    `within_s`."""
    begun = time.perf_counter()
    while True:
        now = await gauges(target)
        passed = time.perf_counter() - begun
        if all(now[name] == 0 for name in IDLE):
            return passed
        if passed > within_s:
            return None
        await asyncio.sleep(0.02)
