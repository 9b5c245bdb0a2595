"""Decoding steps of a decoder-only model in several implementations, alternating in one process.

    python -m benchmarks.causal_step --shape smollm2-135m --lanes 3
    python -m benchmarks.causal_step --base runs/smollm2 --ways lean int8

Only the model runs, without engine or sampling. The head is part of a step. Times are medians over the rounds, with
minimum and maximum; the first round is discarded. The machine's load is printed above them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from benchmarks.make_bundle import write_base
from benchmarks.speed import causal_base
from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.cache.kv import KVCache
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane, lane_points
from emorl_core.machine.precision import DTYPES, pick_dtype
from emorl_core.models.causal import load
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.config import read_config
from emorl_core.models.family import Piece
from emorl_core.types import Quantize

CPU = torch.device("cpu")


def transformers_code(base: Path, dtype: torch.dtype) -> CausalModel:
    with mock.patch.object(load, "takes", return_value=False):
        return lean(base, dtype)


def lean(base: Path, dtype: torch.dtype) -> CausalModel:
    return load.load(base, read_config(base), device=CPU, dtype=dtype, training=False)


def _kept(how: Quantize) -> Callable[[Path, torch.dtype], CausalModel]:
    def made(base: Path, dtype: torch.dtype) -> CausalModel:
        model = lean(base, dtype)
        model.quantize(how)
        return model

    return made


WAYS: dict[str, Callable[[Path, torch.dtype], CausalModel]] = {
    "transformers": transformers_code,
    "lean": lean,
    "lean float16": _kept("float16"),
    "lean int8": _kept("int8"),
}


def random_adapters(model: CausalModel, number: int, rank: int) -> list[Adapter]:
    """Random adapters on every linear layer."""
    adapters = []
    for n in range(number):
        generator = torch.Generator().manual_seed(n)
        modules = {
            name: LoraPair(
                torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5,
                torch.randn(out, rank, generator=generator) * 0.1,
                scale=1.0,
            )
            for names, layer in model.linears()
            for name, out in zip(names, layer.outs, strict=True)
        }
        adapters.append(Adapter(f"adapter-{n}", modules))
    return adapters


class Stepper:
    """A model with `lanes` rows of a prompt in its cache."""

    def __init__(self, model: CausalModel, lanes: int, prompt: int) -> None:
        self.model = model
        points = lane_points(len(model.adapters))[-lanes:]
        self._index = LaneIndex.of(points, len(model.adapters), CPU)
        ids = tuple(3 + 7 * i % 200 for i in range(prompt))
        self._lanes = [Lane(point, ids) for point in points]
        self.prefill_s = 0.0
        self._cache = self._filled()

    def _filled(self) -> KVCache:
        cache = self.model.new_cache()
        began = time.perf_counter()
        memories = self.model.prefill([Piece.whole(self.model.passage(lane, ())) for lane in self._lanes])
        self.prefill_s = time.perf_counter() - began
        for memory in memories:
            cache.insert(memory)
        return cache

    @torch.inference_mode()
    def seconds(self, steps: int) -> float:
        """Seconds per step, the mean over `steps`."""
        self._cache = self._filled()
        token = torch.full((len(self._lanes), 1), 11)
        began = time.perf_counter()
        for _ in range(steps):
            hidden = self.model.step(token, self._index, self._cache)[:, 0]
            token.fill_(int(self.model.head(hidden.mean(dim=0, keepdim=True)).argmax()))
        return (time.perf_counter() - began) / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=causal_base.SHAPES, default="smollm2-135m", help="model shape (default smollm2-135m)"
    )
    parser.add_argument("--base", type=Path, help="checkpoint folder, instead of random weights of --shape")
    parser.add_argument(
        "--lanes", type=int, nargs="+", default=[1, 3], help="numbers of lanes to measure (default 1 3)"
    )
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank (default 8)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens in the cache before the first step (default 64)")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps per round (default 16)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="number format (default auto)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="implementations to measure (default: all)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's choice)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = pick_dtype(args.dtype, CPU)
    with tempfile.TemporaryDirectory() as folder:
        base = args.base
        if base is None:
            base = Path(folder)
            write_base(base, args.shape)
        models = {}
        for way in args.ways:
            models[way] = WAYS[way](base, dtype)
            models[way].attach(random_adapters(models[way], max(args.lanes), args.rank))
    print(
        f"{args.base or args.shape}, {dtype}, {args.threads} threads, rank {args.rank}, load {os.getloadavg()[0]:.1f}"
    )
    for lanes in args.lanes:
        steppers = {way: Stepper(model, lanes, args.prompt) for way, model in models.items()}
        taken: dict[str, list[float]] = {way: [] for way in steppers}
        first: dict[str, list[float]] = {way: [] for way in steppers}
        for number in range(-1, args.rounds):
            for way, stepper in list(steppers.items())[:: 1 if number % 2 else -1]:
                seconds = stepper.seconds(args.steps)
                if number >= 0:
                    taken[way].append(seconds)
                    first[way].append(stepper.prefill_s)
        for way in steppers:
            print(
                f"{lanes} lanes, {way}: {_told(taken[way])} ms a step, {_told(first[way])} ms a prompt of {args.prompt}"
            )
    return 0


def _told(seconds: list[float]) -> str:
    least, middle, most = (1e3 * each for each in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:.1f} ({least:.1f}-{most:.1f})"


if __name__ == "__main__":
    sys.exit(main())
