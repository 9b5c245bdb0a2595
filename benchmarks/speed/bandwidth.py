"""The machine's limit: its memory bandwidth, and the bytes of weights that a step must read."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.make_bundle import SHAPES, VOCABULARY
from benchmarks.speed import causal_base
from benchmarks.speed.workload import Setup, Times, Work

# q8_0 stores a two-byte scale per block of 32.
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "q8_0": 34 / 32}
_BUFFER_BYTES = 1536 * 2**20  # far larger than any cache


class Bandwidth:
    """The fastest of several simple streaming reads over 1.5 GiB, in one process with the engines' threads."""

    def __init__(self, setup: Setup) -> None:
        self._device = torch.device(setup.device)
        self._buffer = torch.ones(_BUFFER_BYTES // 4, dtype=torch.float32, device=self._device)
        self._vector = torch.ones(4096, dtype=torch.float32, device=self._device)
        self._best: dict[str, float] = {}

    def run(self, work: Work) -> Times:  # noqa: ARG002 - nothing to ask for
        """One pass of each read method. `first` and `total` are the seconds of the fastest one."""
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


def step_bytes(engine: str, shape: str, dtype: str, *, objectives: int, rank: int, quantize: str = "off") -> float:
    """Bytes of weights that one decoding step of a `benchmarks.make_bundle` model must read, each once.

    `emorl` and `peft-mixed` read their adapters too; `published` also runs the encoder and the uncached half of
    cross-attention, in each of its models. quantize: how `emorl` stores the base's matrices. Caches, embedding rows and
    norms are omitted: they are less than one percent.
    """
    base, head, low_rank = _elements_causal(shape, rank) if shape in causal_base.SHAPES else _elements_t5(shape, rank)
    kept, added = ELEMENT_BYTES[dtype if quantize == "off" else quantize], ELEMENT_BYTES[dtype]
    if engine == "published":
        d_model, d_kv, d_ff, layers, heads = SHAPES[shape]
        attention = d_model * d_kv * heads
        again = layers * (4 * attention + 2 * d_model * d_ff) + layers * 2 * attention  # encoder; keys and values
        return (objectives * (again + base) + head) * kept
    if engine in ("emorl", "emorl compiled", "peft-mixed"):
        return (base + head) * kept + objectives * low_rank * added
    return (base + head) * kept


def _elements_t5(shape: str, rank: int) -> tuple[int, int, int]:
    """Matrix elements (decoder, head, one adapter on the decoder) of a step: q, k, v, o of self-attention, q and o of
    cross-attention (its keys and values are cached), and the feed-forward matrices."""
    d_model, d_kv, d_ff, layers, heads = SHAPES[shape]
    inner = d_kv * heads
    decoder = layers * (6 * d_model * inner + 2 * d_model * d_ff)
    low_rank = layers * rank * (6 * (d_model + inner) + 2 * (d_model + d_ff))
    return decoder, VOCABULARY * d_model, low_rank


def _elements_causal(shape: str, rank: int) -> tuple[int, int, int]:
    """Matrix elements (linear layers, head, one adapter on all of these layers) of a step."""
    linears = causal_base.linear_shapes(shape).values()
    facts = causal_base.SHAPES[shape]
    head = facts["vocab_size"] * facts["hidden_size"]
    return sum(out * into for out, into in linears), head, rank * sum(out + into for out, into in linears)
