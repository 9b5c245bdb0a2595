"""A whole run: which cases on which shapes, resumable after each case."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import cases, causal_base, processes
from benchmarks.speed.figures import Results, place, read_results, write_results
from benchmarks.speed.machine import describe, usable_cores
from benchmarks.speed.rounds import Pool, say
from benchmarks.speed.targets import judge
from emorl_core.errors import InvalidRequest
from emorl_core.machine.precision import pick_device, pick_dtype, pick_quantize
from emorl_core.types import Quantize

# In this order most engines are loaded only once: a case reuses those of the previous case.
CASES: dict[str, Callable[[cases.Bench], None]] = {
    "bandwidth": cases.bandwidth,
    "decode": cases.decode,
    "requests": cases.requests,
    "long": cases.long,
    "prefill": cases.prefill,
    "position": cases.position,
    "objectives": cases.objectives,
    "again": cases.again,
    "turn": cases.turn,
    "weights": cases.weights,
    "memory": cases.memory,
    "copied": processes.copied,
    "cold": processes.cold,
    "http": processes.http,
}
ENCODER_ONLY = ("cold", "http")  # only for T5 shapes: their programs and requests are written for T5
DECODER_ONLY = ("turn", "copied")  # a T5 reads every prompt anew; the demo is a decoder
OF_TARGETS = {  # shape -> the cases that its targets refer to
    "t5-base": ("bandwidth", "decode", "requests", "prefill", "position", "objectives", "again", "memory"),
    "smollm2-135m": ("bandwidth", "decode", "requests", "prefill", "turn", "weights", "memory", "copied"),
    "qwen2.5-0.5b": ("bandwidth", "decode", "memory"),
}
OF_OTHER_SHAPES = ("bandwidth", "decode")  # the other cases would show nothing new, and take as long again
_PACKAGES = {"ctranslate2": ("ctranslate2",), "llama.cpp": ("xllamacpp", "gguf")}
ON_CUDA = ("bandwidth", "decode", "objectives", "requests")


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of `emorl bench`. None and empty mean the defaults."""

    shapes: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    cases: Sequence[str] = ()
    peers: Sequence[str] | None = None
    rounds: int | None = None
    quick: bool = False
    threads: int | None = None
    device: str = "cpu"
    folder: Path = Path("runs/bench")
    json: Path | None = None
    resume: bool = False
    in_process: bool = False  # only for tests, since engines then share threads

    def check(self) -> None:
        """Validate the plan: raises InvalidRequest, before anything is loaded or written."""
        for name, value in (("rounds", self.rounds), ("threads", self.threads)):
            if value is not None and value < 1:
                raise InvalidRequest(f"--{name} is {value}; allowed: a whole number from 1")
        for peer in self.peers or ():
            if peer not in cases.PEERS:
                raise InvalidRequest(f"--peers: {peer[:40]!r} is unknown; allowed: {', '.join(cases.PEERS)}, none")
        pick_device(self.device)
        for peer in self.peers or ():
            if (missing := _missing(peer)) is not None:
                raise InvalidRequest(f"--peers: {missing} is not installed; install emorl with its extra `bench`")
            if not any(cases.runs(peer, shape) for shape in self.measured):
                raise InvalidRequest(f"--peers: {peer} runs no {self.measured[0]}; leave it out, or name another shape")
        for shape in self.shapes:
            no_encoder = shape in causal_base.SHAPES
            others = ENCODER_ONLY if no_encoder else DECODER_ONLY
            if odd := [case for case in self.cases if case in others]:
                raise InvalidRequest(
                    f"--case {odd[0]} is not measured on {shape}, which has {'no' if no_encoder else 'an'} encoder; "
                    f"allowed: {', '.join(case for case in CASES if case not in others)}"
                )
        if self.device == "cuda" and (odd := [case for case in self.cases if case not in ON_CUDA]):
            raise InvalidRequest(f"--case {odd[0]} is not measured with --device cuda; allowed: {', '.join(ON_CUDA)}")
        if self.json is not None:
            if self.json.exists() and not self.resume:
                raise InvalidRequest(f"--json {self.json}: exists already; go on with it by --resume, or name another")
            if not self.json.parent.is_dir():
                raise InvalidRequest(f"--json {self.json}: its folder does not exist")
        elif self.resume:
            raise InvalidRequest("--resume goes on with a file of --json; name it")

    @property
    def measured(self) -> Sequence[str]:
        """The shapes to measure."""
        return self.shapes or (tuple(OF_TARGETS) if self.device == "cpu" else ("t5-base",))

    def steps(self) -> list[Step]:
        """The steps, in order."""
        device = torch.device(self.device)
        found: dict[tuple[str, str, str], Step] = {}
        for shape in self.measured:
            usual = OF_TARGETS.get(shape, OF_OTHER_SHAPES)
            if self.device == "cuda":
                usual = tuple(case for case in usual if case in ON_CUDA)
            wanted = self.cases if self.shapes and self.cases else [c for c in usual if c in (self.cases or usual)]
            for dtype in self.dtypes or ("auto",):
                named = str(pick_dtype(dtype, device)).removeprefix("torch.")
                quantize = pick_quantize("auto", dtype, device)
                for case in (each for each in CASES if each in wanted):
                    found.setdefault((case, shape, named), Step(case, shape, named, quantize))
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Step:
    """One case to measure. `quantize`: how this engine stores the base's matrices, by default."""

    case: str
    shape: str
    dtype: str
    quantize: Quantize


def run(plan: Plan) -> tuple[Results, list[dict[str, Any]]]:
    """Measure, and write the file after every case, so that a stopped run can resume.

    Raises:
        InvalidRequest: the plan cannot be carried out. WorkerFailed: an engine failed.
    """
    plan.check()
    steps = plan.steps()
    threads = plan.threads or usable_cores()
    results = Results(machine=describe(threads))
    if plan.json is not None and plan.json.exists():
        here, results = results, read_results([plan.json])
        if place(results.machine) != place(here.machine):
            raise InvalidRequest(f"--json {plan.json}: was measured on another machine or with other threads")
        if here.machine["commit"] != results.machine.get("commit"):
            results.note(f"Continued at commit {here.machine['commit']}, {here.machine['measured']}.")
    results.settings = {
        "rounds": plan.rounds,
        "quick": plan.quick,
        "rank": cases.RANK,
        "objectives": cases.OBJECTIVES,
        "seed": "prompts and weights by round, adapters and base by number",
    }
    peers = _peers(plan, results)
    if plan.device == "cpu":
        here = "is on this machine, see --device cuda" if torch.cuda.is_available() else "is not on this machine"
        results.note(f"GPU: not measured in this run; a CUDA device {here}.")
    targets: list[dict[str, Any]] = []
    with Pool(in_process=plan.in_process) as pool:
        for step in steps:
            targets = judge(results, steps[0].dtype, plan.device)
            if _done(results, step, plan.device):
                continue
            say(f"{step.case}, {step.shape}, {step.dtype}", indent="")
            bench = cases.Bench(
                plan.folder,
                step.shape,
                step.dtype,
                plan.device,
                threads,
                peers,
                plan.rounds,
                plan.quick,
                pool,
                results,
                quantize=step.quantize,
            )
            CASES[step.case](bench)
            targets = judge(results, steps[0].dtype, plan.device)
            if plan.json is not None:
                write_results(plan.json, results, targets)
    return results, targets


def _peers(plan: Plan, results: Results) -> Sequence[str]:
    if plan.peers is not None:
        return plan.peers
    if plan.device == "cuda":
        return ("one-model",)
    found = []
    for peer in (each for each in cases.PEERS if any(cases.runs(each, shape) for shape in plan.measured)):
        if (missing := _missing(peer)) is None:
            found.append(peer)
        else:
            results.note(f"{peer}: not measured; {missing} is not installed (emorl's extra `bench`).")
    return found


def _done(results: Results, step: Step, device: str) -> bool:
    """Whether the step's case has been measured; a case adds its figures only when all are complete."""
    return any(
        figure.case == step.case
        and figure.device == device
        and (step.case == "bandwidth" or (figure.shape, figure.dtype) == (step.shape, step.dtype))
        for figure in results.figures
    )


def _missing(peer: str) -> str | None:
    """The first package that a peer needs and that is not installed."""
    return next((each for each in _PACKAGES.get(peer, ()) if importlib.util.find_spec(each) is None), None)
