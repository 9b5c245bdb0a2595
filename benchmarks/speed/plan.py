"""One run from beginning to end: which cases on which shapes, resumable case by case."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import cases, processes
from benchmarks.speed.figures import Results, place, read_results, write_results
from benchmarks.speed.machine import describe, usable_cores
from benchmarks.speed.rounds import Pool, say
from benchmarks.speed.targets import SHAPE, judge
from emorl_core.errors import InvalidRequest
from emorl_core.machine.precision import pick_device, pick_dtype

# In this order most engines are loaded once: a case keeps those of the case before it.
CASES: dict[str, Callable[[cases.Bench], None]] = {
    "bandwidth": cases.bandwidth,
    "decode": cases.decode,
    "requests": cases.requests,
    "long": cases.long,
    "prefill": cases.prefill,
    "position": cases.position,
    "objectives": cases.objectives,
    "again": cases.again,
    "memory": cases.memory,
    "cold": processes.cold,
    "http": processes.http,
}
OF_OTHER_SHAPES = ("bandwidth", "decode")  # the other cases say nothing new there, and take as long again
ON_CUDA = ("bandwidth", "decode", "objectives", "requests")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `emorl bench` was asked for. None and empty stand for the defaults."""

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
    in_process: bool = False  # tests only: engines would share their threads

    def check(self) -> None:
        """Raises InvalidRequest before anything is loaded or written."""
        for name, value in (("rounds", self.rounds), ("threads", self.threads)):
            if value is not None and value < 1:
                raise InvalidRequest(f"--{name} is {value}; allowed: a whole number from 1")
        for peer in self.peers or ():
            if peer not in cases.PEERS:
                raise InvalidRequest(f"--peers: {peer[:40]!r} is unknown; allowed: {', '.join(cases.PEERS)}, none")
        pick_device(self.device)
        if "ctranslate2" in (self.peers or ()) and not _installed("ctranslate2"):
            raise InvalidRequest("--peers: ctranslate2 is not installed; install emorl with its extra `bench`")
        if self.device == "cuda" and (odd := [case for case in self.cases if case not in ON_CUDA]):
            raise InvalidRequest(f"--case {odd[0]} is not measured with --device cuda; allowed: {', '.join(ON_CUDA)}")
        if self.json is not None:
            if self.json.exists() and not self.resume:
                raise InvalidRequest(f"--json {self.json}: exists already; go on with it by --resume, or name another")
            if not self.json.parent.is_dir():
                raise InvalidRequest(f"--json {self.json}: its folder does not exist")
        elif self.resume:
            raise InvalidRequest("--resume goes on with a file of --json; name it")

    def steps(self) -> list[tuple[str, str, str]]:
        """(case, shape, dtype) in the order of measuring."""
        found = []
        for shape in self.shapes or (SHAPE,):
            for dtype in self.dtypes or ("auto",):
                usual = OF_OTHER_SHAPES if shape != SHAPE else ON_CUDA if self.device == "cuda" else CASES
                named = str(pick_dtype(dtype, torch.device(self.device))).removeprefix("torch.")
                found += [(case, shape, named) for case in CASES if case in (self.cases or usual)]
        return list(dict.fromkeys(found))


def run(plan: Plan) -> tuple[Results, list[dict[str, Any]]]:
    """Measure, and write the file after every case: a run that was stopped goes on where it was.

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
            _note(results, f"Continued at commit {here.machine['commit']}, {here.machine['measured']}.")
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
        _note(results, f"GPU: not measured in this run; a CUDA device {here}.")
    targets: list[dict[str, Any]] = []
    with Pool(in_process=plan.in_process) as pool:
        for case, shape, dtype in steps:
            targets = judge(results, steps[0][2], plan.device)
            if _done(results, case, shape, dtype, plan.device):
                continue
            say(f"{case}, {shape}, {dtype}", indent="")
            bench = cases.Bench(
                plan.folder,
                shape,
                dtype,
                plan.device,
                threads,
                peers,
                plan.rounds,
                plan.quick,
                pool,
                results,
            )
            CASES[case](bench)
            targets = judge(results, steps[0][2], plan.device)
            if plan.json is not None:
                write_results(plan.json, results, targets)
    return results, targets


def _peers(plan: Plan, results: Results) -> Sequence[str]:
    if plan.peers is not None:
        return plan.peers
    if plan.device == "cuda":
        return ("one-model",)
    if _installed("ctranslate2"):
        return cases.PEERS
    _note(results, "ctranslate2: not measured; it is not installed (emorl's extra `bench`).")
    return [peer for peer in cases.PEERS if peer != "ctranslate2"]


def _done(results: Results, case: str, shape: str, dtype: str, device: str) -> bool:
    """A case adds its figures when it has all of them."""
    return any(
        figure.case == case
        and figure.device == device
        and (case == "bandwidth" or (figure.shape, figure.dtype) == (shape, dtype))
        for figure in results.figures
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _note(results: Results, note: str) -> None:
    if note not in results.notes:
        results.notes.append(note)
