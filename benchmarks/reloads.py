"""Bundles renamed into place while a server loads: every receipt must replay on the bundle that it names.

    python -m benchmarks.reloads --reloads 100

Three random bundles of one shape are swapped at random times while the server is told to reload, by SIGHUP and by
`POST /admin/reload`, and clients request receipts. Afterwards `emorl replay` runs every receipt on the bundle that it
names. Exit code 1: a replay gave other tokens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.http.streams import Target, connection, generate_body, head_of
from benchmarks.make_bundle import write_bundle
from emorl_core.bundles.bundle import Bundle, write_spec

MOST_RELOADS = 1000
_NAMES = ("first", "second", "third")
_MOST_RECEIPTS = 600
_CLIENTS = 2


@dataclass(frozen=True, slots=True)
class Report:
    """`reloads`: number done, by the route or a signal. `answers`: the route's status -> count. `receipts`: bundle ->
    number of receipts that name it. `wrong`: ids of receipts that do not replay on their bundle."""

    wanted: int
    reloads: int
    answers: dict[str, int]
    signals: int
    receipts: dict[str, int]
    wrong: list[str]
    failed: dict[str, int]

    def faults(self) -> list[str]:
        found = [f"{count} requests: {kind}" for kind, count in self.failed.items()]
        if self.wrong:
            found.append(f"{len(self.wrong)} receipts do not replay on the bundle they name, first {self.wrong[0]}")
        if len(self.receipts) < len(_NAMES):
            found.append(f"only {', '.join(self.receipts) or 'no bundle'} served; this shows nothing")
        if self.reloads < self.wanted:
            found.append(f"{self.reloads} reloads of {self.wanted} wanted")
        return found

    def lines(self) -> list[str]:
        def told(counts: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

        return [
            f"reloads          {self.reloads}; POST /admin/reload: {told(self.answers)}, and {self.signals} signals",
            f"receipts         {sum(self.receipts.values())}: {told(self.receipts)}",
            *(f"FAULT            {fault}" for fault in self.faults()),
        ]

    def facts(self) -> dict[str, Any]:
        return {
            "holds": not self.faults(),
            "reloads": self.reloads,
            "answers": self.answers,
            "signals": self.signals,
            "receipts": self.receipts,
            "wrong": self.wrong,
            "failed": self.failed,
        }


class Places:
    """Bundles in `folder`, one of them at `current`. Each has a copy elsewhere that is never moved."""

    def __init__(self, folder: Path, shape: str) -> None:
        self.folder = folder
        self.current = folder / "current"
        self._there = _NAMES[0]
        for seed, name in enumerate(_NAMES):
            bundle = write_bundle(folder / name, shape, seed=seed, base=folder / "base")
            write_spec(bundle, Bundle.open(bundle).spec.model_copy(update={"name": name}))
            shutil.copytree(bundle, self.still(name), symlinks=True)
        (folder / self._there).rename(self.current)

    def still(self, name: str) -> Path:
        return self.folder / "still" / name

    def put(self, name: str) -> None:
        """Replace `current` by two renames; between them it does not exist."""
        if name != self._there:
            self.current.rename(self.folder / self._there)
            (self.folder / name).rename(self.current)
            self._there = name


async def _post(target: Target, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    async with connection(target) as (reader, writer):
        writer.write(target.request("POST", path, body))
        status, _ = await head_of(reader)
        return status, json.loads(await reader.read())


async def run(
    target: Target, admin: Target, pid: int, places: Places, done: Callable[[], int], reloads: int, seed: int = 0
) -> Report:
    """Run until `reloads` are done, or twenty times as many were requested. done: the server's count."""
    dice = random.Random(seed)
    answers, failed, signals = Counter[str](), Counter[str](), 0
    receipts: dict[str, list[dict[str, Any]]] = defaultdict(list)

    async def rename() -> None:
        while True:
            await asyncio.sleep(dice.uniform(0, 0.3))
            places.put(dice.choice(_NAMES))

    async def ask() -> None:
        while True:
            body = {**generate_body(dice, 16, stream=False), "receipt": True}
            status, answer = await _post(target, "/generate", body)
            if status != 200:
                failed[f"status {status}"] += 1
            elif sum(map(len, receipts.values())) < _MOST_RECEIPTS:
                receipts[answer["receipt"]["identity"]["bundle"]].append(answer["receipt"])
            await asyncio.sleep(dice.uniform(0, 0.2))

    others = [asyncio.create_task(each) for each in (rename(), *(ask() for _ in range(_CLIENTS)))]
    while done() < reloads and answers.total() < 20 * reloads:
        if dice.random() < 0.2:
            os.kill(pid, signal.SIGHUP)
            signals += 1
        status, _ = await _post(admin, "/admin/reload", {})
        answers[{200: "taken", 409: "refused"}.get(status, f"status {status}")] += 1
        await asyncio.sleep(dice.uniform(0, 2.0 if status == 409 else 0.3))  # refused: another reload is running
    for task in others:
        task.cancel()
    for result in await asyncio.gather(*others, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            failed[type(result).__name__] += 1
    wrong: list[str] = []
    for name, named in receipts.items():
        wrong += await asyncio.to_thread(replayed_otherwise, places, name, named)
    return Report(
        reloads,
        done(),
        dict(answers),
        signals,
        {name: len(named) for name, named in receipts.items()},
        wrong,
        dict(failed),
    )


def replayed_otherwise(places: Places, name: str, receipts: list[dict[str, Any]]) -> list[str]:
    """The ids of receipts for which `emorl replay` does not report the same tokens."""
    if name not in _NAMES:
        return [receipt["id"] for receipt in receipts]
    answer = json.dumps({"emorl": {"receipts": receipts}})
    command = [sys.executable, "-m", "emorl_cli", "replay", "-", str(places.still(name)), "--json"]
    done = subprocess.run(command, input=answer, stdout=subprocess.PIPE, text=True, check=False)
    return [finding["id"] for finding in json.loads(done.stdout)["receipts"] if not finding["same"]]


def done(log: Path) -> int:
    return log.read_text(encoding="utf-8").count("reloaded: bundle ")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--reloads", type=int, default=100, help=f"reloads to complete, up to {MOST_RELOADS} (default 100)"
    )
    made.add_argument("--shape", default="t5-tiny", help="model shape of the bundles (default t5-tiny)")
    made.add_argument("--seed", type=int, default=0, help="seed of all random times (default 0)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if not 0 < options.reloads <= MOST_RELOADS:
        text = f"--reloads is {options.reloads}; allowed: above 0, up to {MOST_RELOADS}"
        print(f"benchmarks.reloads: error: {text}", file=sys.stderr)
        return 2
    settings = argparse.Namespace(dtype="float32", slots=4, max_queue=16, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder), options.shape)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "EMORL_ADMIN_KEYS": "reloads"}
        log = Path(folder) / "log"
        with (
            log.open("w") as lines,
            load.served(places.current, settings, {"log-level": "info"}, env=environment, stderr=lines) as (url, pid),
        ):
            target, admin = Target.parse(url), Target.parse(url, "reloads")
            report = asyncio.run(run(target, admin, pid, places, lambda: done(log), options.reloads, options.seed))
    print("\n".join(report.lines()))
    print(json.dumps(report.facts()))
    return 1 if report.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
