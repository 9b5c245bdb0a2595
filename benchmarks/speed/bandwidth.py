"""The machine's own limit: how fast it reads memory, and how many bytes of weights a step must read."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.make_bundle import SHAPES, VOCABULARY
from benchmarks.speed.workload import Setup, Times, Work

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_BUFFER_BYTES = 1536 * 2**20  # far beyond any cache


class Bandwidth:
    """The best streaming read of several simple ones over 1.5 GiB, in one process with the engines' threads."""

    def __init__(self, setup: Setup) -> None:
        self._device = torch.device(setup.device)
        self._buffer = torch.ones(_BUFFER_BYTES // 4, dtype=torch.float32, device=self._device)
        self._vector = torch.ones(4096, dtype=torch.float32, device=self._device)
        self._best: dict[str, float] = {}

    def run(self, work: Work) -> Times:  # noqa: ARG002 - nothing to ask for
        """One pass of each way of reading. `first` and `total` are the seconds of the fastest one."""
        matrix = self._buffer.view(-1, 4096)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "sum of float32": self._buffer.sum,
            "sum of int64": self._buffer.view(torch.int64).sum,
            "largest int32": self._buffer.view(torch.int32).max,
            "matrix times vector": lambda: matrix @ self._vector,
        }
        taken = {}
        for name, way in ways.items():
            self._wait()
            start = time.perf_counter()
            way()
            self._wait()
            taken[name] = time.perf_counter() - start
            self._best[name] = min(self._best.get(name, float("inf")), taken[name])
        seconds = min(taken.values())
        return Times(seconds, seconds, 1)

    def facts(self) -> dict[str, object]:
        return {"gb_per_s": {name: _BUFFER_BYTES / seconds / 1e9 for name, seconds in self._best.items()}}

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def gb_per_s(times: Times) -> float:
    return _BUFFER_BYTES / times.total / 1e9


def step_bytes(engine: str, shape: str, dtype: str, *, objectives: int, rank: int) -> int:
    """Bytes of weights that one decoding step of a `benchmarks.make_bundle` model must read, each once.

    Of the decoder: q, k, v, o of self-attention, q and o of cross-attention (its keys and values are cached), the
    feed-forward matrices, and the head. `emorl` and `peft-mixed` add their adapters, `published` runs the encoder and
    the uncached half of cross-attention as well, in every one of its models. Caches, embedding rows and norms are left
    out: they are less than a hundredth.
    """
    d_model, d_kv, d_ff, layers, heads = SHAPES[shape]
    inner = d_kv * heads
    attention, dense = d_model * inner, d_model * d_ff
    decoder = layers * (6 * attention + 2 * dense)
    head = VOCABULARY * d_model
    if engine == "published":
        encoder = layers * (4 * attention + 2 * dense)
        elements = objectives * (encoder + decoder + layers * 2 * attention) + head
    elif engine in ("emorl", "emorl compiled", "peft-mixed"):
        low_rank = layers * rank * (6 * (d_model + inner) + 2 * (d_model + d_ff))
        elements = decoder + head + objectives * low_rank
    else:
        elements = decoder + head
    return elements * ELEMENT_BYTES[dtype]
