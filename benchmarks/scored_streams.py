"""The effect of scoring on concurrent streams: the gaps between tokens with `score` off and on.

    python -m benchmarks.scored_streams --bundle my-demo

Needs a bundle with scorers. A server is started, and concurrent clients read streams, alternating between streams
without and with scores. Gaps are between tokens as a client receives them; `end` is the time from a stream's last token
to its end, which waits for the scores. Medians are over rounds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.http.streams import Answer, Target, ask, generate_body
from benchmarks.load import served

_WAYS = {"off": False, "on": True}


@dataclass(slots=True)
class Rounds:
    """Results of one mode in milliseconds, one number per round."""

    middle: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # 99th percentile
    end: list[float] = field(default_factory=list)

    def take(self, answers: Sequence[tuple[Answer, float]]) -> None:
        gaps = [gap * 1000 for answer, _ in answers for gap in answer.gaps]
        self.middle.append(statistics.median(gaps))
        self.late.append(statistics.quantiles(gaps, n=100)[98])
        self.end.append(statistics.median(end * 1000 for _, end in answers))

    def summary(self) -> dict[str, float]:
        columns = {"gap_ms": self.middle, "gap_p99_ms": self.late, "end_ms": self.end}
        return {name: round(statistics.median(values), 2) for name, values in columns.items()}


async def _stream(target: Target, body: dict[str, object]) -> tuple[Answer, float]:
    """The answer, and the seconds from its last token to its end."""
    began = time.perf_counter()
    answer = await ask(target, body)
    took = time.perf_counter() - began
    if answer.kind != "completed" or answer.first_token_s is None:
        raise SystemExit(f"benchmarks.scored_streams: error: an answer ended as {answer.kind}")
    return answer, took - answer.first_token_s - sum(answer.gaps)


async def _round(
    target: Target, clients: int, new_tokens: int, *, score: bool, seed: int
) -> list[tuple[Answer, float]]:
    dice = random.Random(seed)
    bodies = [generate_body(dice, new_tokens, stream=True, exactly=True) | {"score": score} for _ in range(clients)]
    return await asyncio.gather(*(_stream(target, body) for body in bodies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder to serve, with scorers")
    parser.add_argument("--clients", type=int, default=8, help="concurrent streams (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each mode (default 5)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens per stream (default 64)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="number format (default auto)"
    )
    parser.add_argument("--threads", default="auto", help="the server's CPU threads (default auto)")
    options = parser.parse_args()
    ways = {name: Rounds() for name in _WAYS}
    own = argparse.Namespace(dtype=options.dtype, slots=16, max_queue=64, threads=options.threads)
    with served(options.bundle, own) as (url, _):
        target = Target.parse(url)
        for number in range(options.rounds + 1):  # warm-up
            for name, score in _WAYS.items():
                answers = asyncio.run(_round(target, options.clients, options.new_tokens, score=score, seed=number))
                if number:
                    ways[name].take(answers)
    found = {name: rounds.summary() for name, rounds in ways.items()}
    for name, numbers in found.items():
        print(f"score {name:4}" + "  ".join(f"{key} {value:8.2f}" for key, value in numbers.items()))
    print(json.dumps({"clients": options.clients, "rounds": options.rounds, "tokens": options.new_tokens, **found}))


if __name__ == "__main__":
    main()
