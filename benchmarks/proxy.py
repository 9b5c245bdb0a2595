"""The cost of Ray's proxy, and the gain of a second replica: one bundle behind `emorl serve` and behind `emorl deploy`,
alternating. Needs the extra `ray`.

    python -m benchmarks.proxy --bundle my-bundle

First one stream at a time, on one core each: the time to the first token and between tokens. Then many concurrent
streams: tokens per second of one process on two cores, and of two replicas on one core each. The clients run on the
same machine, and no step is compiled. One line has the arguments for `benchmarks.queueing`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import load
from benchmarks.http.streams import Target, ask, generate_body
from benchmarks.replicas import deployed

_WARM_UP = 3
SERVE, DEPLOY = "emorl serve", "emorl deploy"


@dataclass(slots=True)
class Side:
    """One way to serve. Lists have one entry per round, in seconds or tokens per second. `gap`: the round's median
    between tokens; `crowded`: the same with many concurrent streams."""

    first: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    crowded: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


def alternate(targets: dict[str, Target], rounds: int, new_tokens: int) -> dict[str, Side]:
    """One stream after the other, with the same requests on each side. Raises `SystemExit` if the texts differ."""
    dice = random.Random(5)
    sides = {name: Side() for name in targets}
    for number in range(rounds + _WARM_UP):
        body = generate_body(dice, new_tokens, stream=True, exactly=True)
        ids: dict[str, list[int]] = {}
        for name in sorted(targets, reverse=bool(number % 2)):  # the second side has warmer caches, so take turns
            answer = asyncio.run(ask(targets[name], body))
            if answer.kind != "completed" or answer.first_token_s is None:
                raise SystemExit(f"{name} answered: {answer.kind}")
            ids[name] = answer.token_ids
            if number >= _WARM_UP:
                sides[name].first.append(answer.first_token_s)
                sides[name].gap.append(statistics.median(answer.gaps))
        if len(set(map(tuple, ids.values()))) > 1:
            raise SystemExit("the two sides gave different tokens for one request")
    return sides


def crowd(name: str, target: Target, side: Side, options: argparse.Namespace, seed: int) -> None:
    begun = time.perf_counter()
    report = asyncio.run(
        load.run(target, options.clients, options.seconds, new_tokens=options.new_tokens, seed=1000 * seed)
    )
    took_s = time.perf_counter() - begun  # to the last answer
    if set(report.outcomes) - {"completed", "refused"}:
        raise SystemExit(f"{name}: {dict(report.outcomes)}")
    side.tokens.append(report.tokens / took_s)
    side.crowded.append(statistics.median(report.gaps_s))


def shown(what: str, unit: str, values: Sequence[float], scale: float = 1.0) -> str:
    values = [value * scale for value in values]
    spread = f"({min(values):.2f} - {max(values):.2f})"
    return f"  {what:34}{statistics.median(values):9.2f} {unit:10} {spread} over {len(values)} rounds"


def measure(options: argparse.Namespace) -> dict[str, Side]:
    """Results by way of serving; each is printed when it is known."""
    plain = {"compile": "off"}
    more = ["--dtype", options.dtype, "--max-queue", str(options.max_queue)]
    more += ["--compile", "off", "--log-level", "warning"]  # as in `load.served`
    one, two = (argparse.Namespace(**{**vars(options), "threads": threads}) for threads in (1, 2))
    with ExitStack() as running:
        url, _ = running.enter_context(load.served(options.bundle, one, plain))
        wide, _ = running.enter_context(load.served(options.bundle, two, plain))
        at = running.enter_context(deployed(options.bundle, 2, options.slots, *more))
        targets = {SERVE: Target.parse(url), DEPLOY: at.target}
        sides = alternate(targets, options.rounds, options.new_tokens)
        tell_streams(sides)
        crowd(SERVE, targets[SERVE], sides[SERVE], options, 1)
        print(f"python -m benchmarks.queueing {queueing_times(sides[SERVE], options.clients)}", flush=True)
        pair = {"one process, two threads": Target.parse(wide), "two replicas, a thread each": at.target}
        sides |= {name: Side() for name in pair}
        for seed in range(2, 2 + options.crowds):
            for name in sorted(pair, reverse=bool(seed % 2)):
                crowd(name, pair[name], sides[name], options, seed)
        for name in pair:
            print(name)
            print(shown(f"with {options.clients} streams", "tokens/s", sides[name].tokens), flush=True)
    return sides


def tell_streams(sides: dict[str, Side]) -> None:
    for name, side in sides.items():
        print(name)
        print(shown("first token", "ms", side.first, 1e3))
        print(shown("between tokens", "ms", side.gap, 1e3))
    for what, kind in (("first token", "first"), ("token", "gap")):
        pairs = [b - a for a, b in zip(*(getattr(sides[name], kind) for name in (SERVE, DEPLOY)), strict=True)]
        print(shown(f"the proxy adds to a {what}", "ms", pairs, 1e3), flush=True)


def queueing_times(side: Side, clients: int) -> str:
    """The times of one process with one thread, as arguments for `benchmarks.queueing`."""
    step, crowded, first = (statistics.median(values) * 1e3 for values in (side.gap, side.crowded, side.first))
    row = max(0.0, (crowded - step) / (clients - 1))
    return f"--step-ms {step:.2f} --row-ms {row:.2f} --prompt-ms {max(0.0, first - step):.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bundle", type=Path, required=True, help="bundle folder to serve")
    made.add_argument("--rounds", type=int, default=20, help="streams to measure one at a time (default 20)")
    made.add_argument("--new-tokens", type=int, default=64, help="tokens per stream (default 64)")
    made.add_argument("--clients", type=int, default=16, help="concurrent streams, up to --slots (default 16)")
    made.add_argument(
        "--seconds", type=float, default=10.0, help="seconds of concurrent streams per measurement (default 10)"
    )
    made.add_argument(
        "--crowds", type=int, default=3, help="measurements with concurrent streams per two-core setup (default 3)"
    )
    made.add_argument("--dtype", default="auto", help="number format (default auto)")
    options = made.parse_args(argv)
    if options.clients < 2 or min(options.rounds, options.crowds, options.new_tokens - 1, options.seconds) <= 0:
        made.error("--clients and --new-tokens: from 2; --rounds, --crowds and --seconds: above 0")
    options.slots, options.max_queue = options.clients, 4 * options.clients
    sides = measure(options)
    print(json.dumps({name: asdict(side) for name, side in sides.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
