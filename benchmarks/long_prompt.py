"""The effect of a long prompt on running streams, and of `prefill_tokens` on the prompt: 4,000 tokens join eight
streams.

    python -m benchmarks.long_prompt --shape 135m

The prompt is prefilled in pieces of several sizes (`prefill_tokens`). For each size it prints the streams' median gap
before the prompt arrives, the 99th percentile of their gaps until its first token, the ratio of the two, and the time
to its first token. Weights are random, with the shapes of real models. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.speed import causal_base
from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.engine.engine import Engine
from emorl_core.models.family import TrainableModel
from emorl_core.models.registry import load_model
from emorl_core.types import Failure, Request, Sampling, TokenEvent

SHAPES = {"tiny": "llama-tiny", "135m": "smollm2-135m"}
_TARGET = 5.0  # ratio of the gaps' 99th percentile to their median
_RANK = 8
_BEFORE = 24  # tokens of each stream before the long prompt arrives


@dataclass(frozen=True, slots=True)
class Measured:
    """One run; times in seconds."""

    median_s: float
    p99_s: float
    first_token_s: float

    @property
    def ratio(self) -> float:
        return self.p99_s / self.median_s


def random_model(shape: str, folder: Path, objectives: int, dtype: torch.dtype) -> TrainableModel:
    """A model of this shape with random weights, and adapters on q and v."""
    config = causal_base.config_of(SHAPES[shape], max_position_embeddings=16384)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = load_model(folder, device=torch.device("cpu"), dtype=dtype)
    shapes = causal_base.linear_shapes(SHAPES[shape])
    model.attach(
        [
            Adapter(
                f"objective-{i}",
                {
                    name: LoraPair(torch.randn(_RANK, into) * into**-0.5, torch.randn(out, _RANK) * 0.02, 1.0)
                    for name, (out, into) in shapes.items()
                    if name.endswith(("q_proj", "v_proj"))
                },
            )
            for i in range(objectives)
        ]
    )
    return model


def measure(model: TrainableModel, budget: int | None, *, streams: int, prompt: int, seed: int) -> Measured:
    """Start `streams`, then add a prompt of `prompt` tokens; ends with its first token."""
    draw = random.Random(seed)
    lanes = ("base", *model.adapters)
    engine = Engine(model, lambda ids: "", lanes, slots=streams + 1, prefill_cache_bytes=0, prefill_tokens=budget)
    weights = (0.0, *(1.0 / len(model.adapters) for _ in model.adapters))

    def request(name: str, tokens: int, new: int) -> Request:
        ids = tuple(draw.randrange(3, model.facts.vocab_size) for _ in range(tokens))
        return Request(name, ids, weights, Sampling(max_new_tokens=new, min_new_tokens=new))

    for number in range(streams):
        engine.add(request(f"stream {number}", 24, 8000))
    stamps: dict[str, list[float]] = {}

    def step() -> None:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Failure):
                raise event.error
            if isinstance(event, TokenEvent):
                stamps.setdefault(event.request_id, []).append(now)

    while len(stamps) < streams or min(map(len, stamps.values())) < _BEFORE:
        step()
    joined = time.perf_counter()
    engine.add(request("long", prompt, 1))
    while "long" not in stamps:
        step()
    first = stamps.pop("long")[0] - joined
    before = [b - a for each in stamps.values() for a, b in _gaps(each) if b <= joined]
    during = sorted(b - a for each in stamps.values() for a, b in _gaps(each) if b > joined)
    return Measured(statistics.median(before), during[min(len(during) - 1, int(0.99 * len(during)))], first)


def _gaps(stamps: list[float]) -> list[tuple[float, float]]:
    return list(pairwise(stamps[4:]))  # warm-up


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="model shape (default tiny)")
    parser.add_argument("--objectives", type=int, default=3, help="lanes per request (default 3)")
    parser.add_argument("--streams", type=int, default=8, help="running streams (default 8)")
    parser.add_argument("--prompt", type=int, default=4000, help="length of the long prompt in tokens (default 4000)")
    parser.add_argument(
        "--budgets",
        default="32,64,128,256,512,0",
        help="values of prefill_tokens, comma-separated; 0: the whole prompt at once",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="number format (default float32)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs per value; the median is printed (default 1)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(options.shape, Path(folder), options.objectives, getattr(torch, options.dtype))
    sizes: dict[str, Any] = {"streams": options.streams, "prompt": options.prompt}
    print(
        f"{options.shape}, {options.dtype}, {options.streams} streams and a prompt of {options.prompt} tokens in"
        f" {options.objectives} lanes each, {torch.get_num_threads()} threads"
    )
    print("| prefill_tokens | median gap ms | p99 gap ms | ratio | first token s |\n|---|---|---|---|---|")
    for budget in map(int, options.budgets.split(",")):
        runs = [measure(model, budget or None, seed=seed, **sizes) for seed in range(options.rounds)]
        run = sorted(runs, key=lambda each: each.ratio)[len(runs) // 2]
        mark = "" if run.ratio < _TARGET else f" (not under {_TARGET:g})"
        print(
            f"| {budget or 'all'} | {run.median_s * 1e3:.1f} | {run.p99_s * 1e3:.1f} | {run.ratio:.1f}{mark}"
            f" | {run.first_token_s:.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
