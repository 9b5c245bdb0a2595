"""Shared parts of the training benchmarks: their options, alternating sides, and printed results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch

from benchmarks.training.sides import NAMES

PARTS = ("total", "rollout", "gradient", "processor")
Times = Mapping[str, Sequence[Mapping[str, float]]]  # by side, one mapping per round


class Side(Protocol):
    def step(self) -> dict[str, float]:
        """One training step: seconds `total`, `rollout` and `gradient`, and `tokens` of a reply on average."""


class InTurn:
    """Several sides run one after the other, as a single side."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides

    def step(self) -> dict[str, float]:
        each = [side.step() for side in self.sides]
        whole = {key: sum(one[key] for one in each) for key in ("total", "rollout", "gradient")}
        return {**whole, "tokens": statistics.fmean(one["tokens"] for one in each)}


def options(
    description: str, shapes: Collection[str], sides: Sequence[str], **defaults: int | str
) -> argparse.ArgumentParser:
    """defaults: values for `shape`, `samples`, `source`, `new` and `rounds`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--shape", choices=shapes, help=f"model shape (default {defaults['shape']})")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step (default 8)")
    parser.add_argument("--samples", type=int, help=f"replies per prompt and objective (default {defaults['samples']})")
    parser.add_argument("--source", type=int, help=f"tokens per prompt (default {defaults['source']})")
    parser.add_argument("--new", type=int, help=f"maximum tokens per reply (default {defaults['new']})")
    parser.add_argument("--rounds", type=int, help=f"measured rounds (default {defaults['rounds']})")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's choice)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA if available, default), cpu or cuda")
    parser.add_argument("--only", choices=sides, action="append", help="measure only this side; repeatable")
    parser.set_defaults(**defaults)
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments, and set torch's number of threads."""
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft's, about transformers
    return args


def measured(makers: Mapping[str, Callable[[], Side]], args: argparse.Namespace) -> Times:
    """Measure the sides, alternating; the first round is a warm-up and is discarded."""
    sides = {name: make() for name, make in makers.items() if not args.only or name in args.only}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        for name, side in sides.items():
            begun = time.process_time()
            taken = side.step()
            taken["processor"] = time.process_time() - begun
            print(f"round {number} of {args.rounds}: {name} {taken['total']:.2f} s", file=sys.stderr, flush=True)
            if number:
                times[name].append(taken)
    return times


def tell(args: argparse.Namespace, times: Times, ratios: Sequence[tuple[str, str]]) -> None:
    """Print lines for people, then one of JSON. ratios: (slow, fast) sides."""
    print(
        f"{args.shape}, {args.prompts} x {args.samples} samples x {len(NAMES)} objectives, {args.source} + up to "
        f"{args.new} tokens, {args.threads} threads, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}; seconds a "
        "step, median (least to most)"
    )
    result: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, **vars(args)}
    for name, rounds in times.items():
        shown = {key: [one[key] for one in rounds] for key in PARTS}
        tokens = statistics.fmean(one["tokens"] for one in rounds)
        parts = "  ".join(f"{key} {spread(values)}" for key, values in shown.items())
        print(f"  {name:6}{parts}  tokens a reply {tokens:.1f}")
        result[name] = {key: statistics.median(values) for key, values in shown.items()} | {"tokens": tokens}
    for slow, fast in ratios:
        if slow in times and fast in times:
            whole, busy = (_ratios(times[slow], times[fast], part) for part in ("total", "processor"))
            print(f"  {slow} / {fast}: {spread(whole)}; in processor time {spread(busy)}")
            result[f"{slow}_over_{fast}"] = {
                "median": statistics.median(whole),
                "least": min(whole),
                "most": max(whole),
                "processor": statistics.median(busy),
            }
    print(json.dumps(result))


def _ratios(slow: Sequence[Mapping[str, float]], fast: Sequence[Mapping[str, float]], part: str) -> list[float]:
    return [a[part] / b[part] for a, b in zip(slow, fast, strict=True)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
