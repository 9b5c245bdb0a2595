"""The cost of HTTP: one stream over HTTP compared with the same tokens from the engine in process, alternating."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.http.streams import Target, ask, generate_body

# Settings that the server must have for `measure`: compiled steps round differently from this process's plain step, and
# the compiler occupies a core.
PLAIN = {"compile": "off"}
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds; `gap` is the round's median time between tokens."""

    first_http: float
    first_engine: float
    gap_http: float
    gap_engine: float


@dataclass(frozen=True, slots=True)
class Report:
    bundle: str
    dtype: str
    new_tokens: int
    rounds: list[Round]
    holds: bool = True  # `measure` raises if the tokens differ in any round

    def middle(self, name: str) -> tuple[float, float, float]:
        """Median, smallest, largest over rounds, in milliseconds."""
        values = [getattr(one, name) * 1e3 for one in self.rounds]
        return statistics.median(values), min(values), max(values)

    def lines(self) -> list[str]:
        shown = [f"{self.bundle}, {self.dtype}: {len(self.rounds)} rounds of {self.new_tokens} tokens, ms"]
        for what, kind in (("first token", "first"), ("between tokens", "gap")):
            for side in ("http", "engine"):
                median, least, most = self.middle(f"{kind}_{side}")
                shown.append(f"  {what:16}{side:8}{median:9.2f}   ({least:.2f} - {most:.2f})")
            pairs = [getattr(one, f"{kind}_http") - getattr(one, f"{kind}_engine") for one in self.rounds]
            shown.append(
                f"  {what:16}HTTP adds {statistics.median(pairs) * 1e3:.2f} (median of the rounds' differences)"
            )
        return shown

    def facts(self) -> dict[str, Any]:
        return asdict(self)


class Different(RuntimeError):
    """HTTP and the engine generated different tokens, so they did not do the same work."""


def measure(target: Target, bundle: Path, dtype: str, *, rounds: int, new_tokens: int, threads: int) -> Report:
    """Alternate between a server that already serves `bundle` and the bundle loaded into this process.

    Raises:
        Different: the two sides did not generate the same tokens.
    """
    from emorl_core.ensemble import Ensemble

    ensemble = Ensemble.load(bundle, dtype=dtype, threads=threads)
    ensemble.warm_up()
    dice = random.Random(11)
    kept: list[Round] = []
    for number in range(rounds + _WARM_UP):
        body = generate_body(dice, new_tokens, stream=True, exactly=True)

        def over_http(body: dict[str, Any] = body) -> tuple[list[int], float, list[float]]:
            answer = asyncio.run(ask(target, body))
            if answer.kind != "completed" or answer.first_token_s is None:
                raise Different(f"the server answered: {answer.kind}")
            return answer.token_ids, answer.first_token_s, answer.gaps

        def in_process(body: dict[str, Any] = body) -> tuple[list[int], float, list[float]]:
            options = {name: value for name, value in body.items() if name not in ("prompt", "stream")}
            stamps = [time.perf_counter()]
            ids = []
            for event in ensemble.stream(body["prompt"], **options):
                stamps.append(time.perf_counter())
                ids.append(event.token_id)
            return ids, stamps[1] - stamps[0], [b - a for a, b in itertools.pairwise(stamps[1:])]

        if number % 2:  # the second side has warmer caches, so take turns
            engine, http = in_process(), over_http()
        else:
            http, engine = over_http(), in_process()
        if http[0] != engine[0]:
            raise Different("HTTP and the engine gave different tokens for the same prompt and seed")
        if number >= _WARM_UP:
            kept.append(Round(http[1], engine[1], statistics.median(http[2]), statistics.median(engine[2])))
    return Report(ensemble.name, ensemble.dtype, new_tokens, kept)
