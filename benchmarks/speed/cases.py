"""The measurements: which engines do which work, and the resulting figures.

A case takes a `Bench` and adds figures to its results. All ratios in the report are within one case, whose engines
alternated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.make_bundle import write_bundle
from benchmarks.speed import causal_base
from benchmarks.speed.bandwidth import gb_per_s, step_bytes
from benchmarks.speed.figures import Figure, Results
from benchmarks.speed.rounds import Entrant, Pool, say, take_turns
from benchmarks.speed.workload import Setup, Times, Work
from emorl_core.errors import UnsupportedModel
from emorl_core.machine.precision import fbgemm_available, pick_dtype
from emorl_core.models.compiling import check_compiler
from emorl_core.types import Quantize

OBJECTIVES = 3
RANK = 8
OBJECTIVES_TRIED = {"cpu": (1, 2, 3, 5, 8), "cuda": (1, 3, 8)}
REQUESTS_TRIED = {"cpu": (1, 4, 16), "cuda": (1, 16, 64, 256)}
_STEERED = ("emorl", "emorl compiled", "emorl serve", "published", "peft-mixed", "llama.cpp adapters")
_LONG_CHAT = 1000  # tokens
SERVED = ("t5-base", "smollm2-135m")  # shapes whose targets include the default settings of `emorl serve`
PEERS = ("one-model", "published", "peft-mixed", "ctranslate2", "llama.cpp")
_FORMATS = {"ctranslate2": ("float32", "int8"), "llama.cpp": ("bfloat16", "q8_0")}


def runs(peer: str, shape: str) -> bool:
    """Whether a peer supports this kind of model."""
    return peer != ("published" if shape in causal_base.SHAPES else "llama.cpp")


@dataclass(slots=True)
class Bench:
    """One run: its model, engines and results."""

    folder: Path  # where random bundles are stored between runs
    shape: str
    dtype: str  # float32 or bfloat16
    device: str
    threads: int
    peers: Sequence[str]
    rounds: int | None  # None: each case's usual number
    quick: bool
    pool: Pool
    results: Results = field(default_factory=Results)
    objectives: int = OBJECTIVES
    quantize: Quantize = "off"  # how this engine stores the base's matrices

    def bundle(self, objectives: int = OBJECTIVES, *, on_reply: bool = False) -> Path:
        """A random bundle of this shape with that many objectives, written on first use; all share one base.
        `on_reply`: adapters act on the reply only."""
        folder = self.folder / f"{self.shape}-{objectives}{'-on-reply' if on_reply else ''}"
        if not (folder / "bundle.yaml").exists():
            say(f"writing {folder}")
            base = self.folder / f"{self.shape}-base"
            write_bundle(folder, self.shape, objectives=objectives, rank=RANK, base=base, on_reply=on_reply)
        return folder

    @property
    def decodes_only(self) -> bool:
        """Whether the shape has no encoder."""
        return self.shape in causal_base.SHAPES

    def setup(
        self, engine: str, *, objectives: int = OBJECTIVES, dtype: str | None = None, quantize: Quantize = "off"
    ) -> Setup:
        slots = max(REQUESTS_TRIED[self.device])
        folder = str(self.bundle(objectives))
        return Setup(engine, folder, dtype or self.dtype, objectives, self.threads, self.device, slots, quantize)

    def ours(
        self, work: Work, *, objectives: int = OBJECTIVES, quantize: Quantize | None = None, on_reply: bool = False
    ) -> Entrant:
        """This engine without compilation. The name includes the format of its matrices if it is not the run's, and
        whether the adapters act on the reply only."""
        kept = quantize or self.quantize
        name = "emorl" if kept == "off" else f"emorl {kept}"
        setup = self.setup("emorl", objectives=objectives, quantize=kept)
        if not on_reply:
            return Entrant(name, setup, work)
        folder = str(self.bundle(objectives, on_reply=True))
        return Entrant(f"{name}, adapters on the reply", replace(setup, folder=folder), work)

    def both(self, work: Work, *, quantize: Quantize | None = None) -> list[Entrant]:
        """This engine without and, if possible, with its step compiled."""
        plain = self.ours(work, quantize=quantize)
        if not self.compiles:
            return [plain]
        compiled = replace(plain.setup, engine="emorl compiled")
        return [plain, replace(plain, name=f"{plain.name} compiled", setup=compiled)]

    @property
    def compiles(self) -> bool:
        """Whether compiled engines can run: on a CPU, torch needs a C++ compiler."""
        if self.device != "cpu":
            return True
        try:
            check_compiler()
        except UnsupportedModel:
            return False
        return True

    @property
    def serves(self) -> bool:
        """Whether the run's number format is what `emorl serve` chooses, and the targets ask for its default settings
        on this shape."""
        usual = str(pick_dtype("auto", torch.device(self.device))).removeprefix("torch.")
        return self.device == "cpu" and self.dtype == usual and self.shape in SERVED

    def entrants(
        self, work: Work, *, only: Sequence[str] = PEERS, compiled: bool = True, int8: bool = False
    ) -> list[Entrant]:
        """This engine and those peers that were requested and are in `only`, all with the same work."""
        found = self.both(work) if compiled else [self.ours(work)]
        if int8 and self.device == "cpu" and fbgemm_available():
            found += self.both(work, quantize="int8")
        for peer in (each for each in self.peers if each in only and runs(each, self.shape)):
            if peer in _FORMATS:
                found += [Entrant(f"{peer} {dtype}", self.setup(peer, dtype=dtype), work) for dtype in _FORMATS[peer]]
            elif peer == "published":  # it specifies no number format, so its models load as float32
                found.append(Entrant(peer, self.setup(peer, dtype="float32"), work, "sample"))
                if self.dtype != "float32":
                    found.append(Entrant(f"{peer} {self.dtype}", self.setup(peer), work, "sample"))
            else:
                found.append(Entrant(peer, self.setup(peer), work))
                if peer == "one-model" and only == PEERS and self.device == "cpu" and self.compiles:
                    found.append(Entrant("one-model compiled", self.setup("one-model compiled"), work))
        return found

    def count(self, usual: int) -> int:
        """The rounds of a case whose usual number is `usual`."""
        return self.rounds or (3 if self.quick else usual)

    def add(self, case: str, entrant: Entrant, metric: str, values: Sequence[float], **sizes: Any) -> None:
        work = entrant.work
        steered = entrant.setup.engine in _STEERED
        keys = {
            "shape": self.shape,
            "dtype": self.dtype,
            "device": self.device,
            "objectives": entrant.setup.objectives if steered else 1,
            "requests": work.requests,
            "source": work.source,
            "new": work.new,
            **sizes,
        }
        self.results.figures.append(Figure(case, entrant.name, metric, tuple(values), **keys))

    def keep_facts(self, case: str, entrants: Sequence[Entrant]) -> None:
        for entrant in entrants:
            worker = self.pool[entrant.setup]
            steered = entrant.setup.engine in _STEERED
            number = f", {entrant.setup.objectives} objectives" if steered else ""
            name = f"{case}, {self.shape}, {self.dtype}: {entrant.name}{number}"
            self.results.facts[name] = {**worker.call("facts"), "resident_bytes": worker.resident_bytes()}


def _decoded(bench: Bench, case: str, entrants: Sequence[Entrant], rounds: int) -> None:
    """Time to first token, time per token and tokens per second of every entrant."""
    taken = take_turns(bench.pool, entrants, rounds)
    for entrant, times in taken.items():
        bench.add(case, entrant, "first_token_ms", [each.first * 1e3 for each in times])
        if entrant.work.new > 1:
            bench.add(case, entrant, "ms_per_token", [each.per_token * 1e3 for each in times])
            bench.add(case, entrant, "tokens_per_s", [entrant.work.requests / each.per_token for each in times])
    bench.keep_facts(case, entrants)


def decode(bench: Bench) -> None:
    """One request, 64 source and 64 new tokens, every peer."""
    new = 32 if bench.shape in ("t5-large", "llama-3.2-1b") else 64
    entrants = bench.entrants(Work(1, 64, new), int8=True)
    if bench.serves:
        entrants.insert(0, Entrant("emorl serve", bench.setup("emorl serve"), Work(1, 64, new)))
    _decoded(bench, "decode", entrants, bench.count(5))
    read = bench.results.find("bandwidth", "machine", "gb_per_s")
    if read is None:
        return
    for entrant in entrants:
        setup = entrant.setup
        needed = step_bytes(
            setup.engine,
            bench.shape,
            setup.dtype,
            objectives=setup.objectives,
            rank=RANK,
            quantize=setup.quantize,
        )
        bench.add("decode", entrant, "limit_ms", [needed / (read.most * 1e9) * 1e3])


def requests(bench: Bench) -> None:
    """Several concurrent requests with different weights."""
    entrants = []
    numbers = REQUESTS_TRIED[bench.device]
    for number in numbers:
        work = Work(number, 64, 64)
        if number in (numbers[0], numbers[-1]):
            entrants += bench.entrants(work, only=_beside(bench), int8=number == numbers[-1])
        else:
            entrants += bench.both(work)[-1:]
    _decoded(bench, "requests", entrants, bench.count(4))


def _beside(bench: Bench) -> tuple[str, ...]:
    """The peers for several requests: those that batch, and whose loading does not take longer than the case."""
    if bench.device != "cpu":
        return ("one-model",)
    return ("llama.cpp",) if bench.decodes_only else ("ctranslate2",)


def objectives(bench: Bench) -> None:
    """One request with increasing numbers of objectives."""
    work = Work(1, 64, 64)
    tried = OBJECTIVES_TRIED[bench.device]
    entrants = [bench.ours(work, objectives=number) for number in tried]
    entrants += bench.entrants(work, only=("one-model",), compiled=False)[1:]
    _decoded(bench, "objectives", entrants, bench.count(5))


def long(bench: Bench) -> None:
    """256 source and 256 new tokens, one request."""
    entrants = bench.entrants(Work(1, 256, 256), only=("one-model", "ctranslate2"))
    _decoded(bench, "long", entrants, bench.count(3))


def position(bench: Bench) -> None:
    """The cost of a token at position 16, 128 and 512 of one answer."""
    entrants = bench.entrants(Work(1, 64, 521), only=("one-model",))
    for entrant, times in take_turns(bench.pool, entrants, bench.count(3)).items():
        for at in (16, 128, 512):
            bench.add("position", entrant, "ms_per_token", [each.around(at) * 1e3 for each in times], position=at)


def prefill(bench: Bench) -> None:
    """Time to first token at 64, 256 and 512 (decoders: 1,000) source tokens; for a T5 in this engine also the
    encoder's share, for a decoder also with adapters that act on the reply only."""
    entrants = []
    for source in (64, 256, _LONG_CHAT if bench.decodes_only else 512):
        work = Work(1, source, 2)
        entrants += bench.entrants(work, only=("one-model", *_beside(bench)), compiled=False)
        if bench.decodes_only:
            entrants.append(bench.ours(work, on_reply=True))
        else:
            entrants.append(replace(bench.ours(work), method="prefill"))
    for entrant, times in take_turns(bench.pool, entrants, bench.count(5)).items():
        metric = "prefill_ms" if entrant.method == "prefill" else "first_token_ms"
        bench.add("prefill", entrant, metric, [each.first * 1e3 for each in times])


def again(bench: Bench) -> None:
    """Time to first token for a prompt of 256 tokens, then for the same prompt with other weights."""
    entrant = bench.ours(Work(1, 256, 4))
    second: list[Times] = []

    def twice(worker: Any, entrant: Entrant, work: Work) -> Times:
        fresh: Times = worker.call(entrant.method, work)
        second.append(worker.call(entrant.method, replace(work, weights_seed=work.seed + 1)))
        return fresh

    rounds = bench.count(9)
    first = take_turns(bench.pool, [entrant], rounds, measure=twice)[entrant]
    bench.add("again", entrant, "first_token_ms", [each.first * 1e3 for each in first])
    remembered = replace(entrant, name=f"{entrant.name}, prompt seen before")
    bench.add("again", remembered, "first_token_ms", [each.first * 1e3 for each in second[-rounds:]])


def turn(bench: Bench) -> None:
    """Time to first token in the second turn of a chat of 1,000 tokens, whose first turn was answered just before, and
    for another conversation of that length that is new."""
    work = Work(1, _LONG_CHAT, 32)
    entrants = []
    for new in (bench.ours(work), bench.ours(work, on_reply=True)):
        entrants += [new, replace(new, name=f"{new.name}, second turn", method="run_second_turn")]
    for entrant, times in take_turns(bench.pool, entrants, bench.count(4)).items():
        bench.add("turn", entrant, "first_token_ms", [each.first * 1e3 for each in times])


def weights(bench: Bench) -> None:
    """One request with `combine: weights` compared with the base alone, both in this engine; llama.cpp with the same
    adapters."""
    entrants = []
    for entrant in bench.both(Work(1, 64, 64)):
        entrants += [
            replace(entrant, name=f"{entrant.name}, adapters summed", method="run_summed"),
            replace(entrant, name=f"{entrant.name}, base alone", method="run_base"),
        ]
    if "llama.cpp" in bench.peers and bench.decodes_only:
        setup = bench.setup("llama.cpp adapters", dtype="bfloat16")
        entrants.append(Entrant("llama.cpp bfloat16, adapters summed", setup, Work(1, 64, 64)))
    _decoded(bench, "weights", entrants, bench.count(5))


def memory(bench: Bench) -> None:
    """Bytes of parameters, of the base alone and with three adapters; counted, not timed."""
    work = Work(1, 64, 4)
    kinds = [bench.ours(work)]
    if bench.device == "cpu" and fbgemm_available():
        kinds.append(bench.ours(work, quantize="int8"))
    sizes = {"requests": 0, "source": 0, "new": 0}
    for entrant in kinds:
        bench.pool.only([])  # a process that has run other cases still holds their memory
        bench.pool.only([entrant.setup])
        worker = bench.pool[entrant.setup]
        parts = worker.call("facts")["parameter_bytes"]
        worker.call("run", entrant.work)
        bench.add("memory", entrant, "base_mb", [parts["base"] / 1e6], **sizes)
        bench.add("memory", entrant, "adapters_mb", [parts["adapters"] / 1e6], **sizes)
        bench.add("memory", entrant, "resident_mb", [worker.resident_bytes() / 1e6], **sizes)


def bandwidth(bench: Bench) -> None:
    """The machine's fastest streaming read: no engine can run a step faster than it reads its weights."""
    entrant = Entrant("machine", Setup("bandwidth", "", "", 0, bench.threads, bench.device), Work(0, 0, 1))
    times = take_turns(bench.pool, [entrant], bench.count(9))[entrant]
    figure = Figure("bandwidth", "machine", "gb_per_s", tuple(map(gb_per_s, times)), device=bench.device)
    if bench.results.find("bandwidth", "machine", "gb_per_s") is None:
        bench.results.figures.append(figure)
    bench.results.facts["machine"] = bench.pool[entrant.setup].call("facts")
