"""Whole comparisons for tests that kill them: the process ends itself at one of the moments that a run passes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from emorl_core.scorers import Checked
from tests.learn.evaluation_cells import run_by_rule, tiny_data
from training.evaluation.cells import REPLIES_FILE, cell_folder
from training.evaluation.methods.experiment import prepare
from training.evaluation.methods.methods import run_cell
from training.evaluation.run import Wanted, judge, open_run, run_cells
from training.progress import Progress

TRAINED = ("base", "single:reflection", "dynaopt", "weights", "emorl", "best-of:base")


class Moments:
    """Kills the program at one of them."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at, self.passed = kill_at, 0

    def one(self) -> None:
        self.passed += 1
        if self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def by_rule(folder: Path, kill_at: int = 0) -> dict[str, Any]:
    """Methods that answer by a rule. Every cell has two moments (replies half written, all written), every scored cell
    one."""
    moments = Moments(kill_at)
    recipe, data, records = tiny_data(folder)
    out = folder / "out"
    answer = run_by_rule(out, records)

    def run_cell(method: str, seed: int, progress: Progress) -> None:
        half = cell_folder(out, method, seed)
        half.mkdir(parents=True, exist_ok=True)
        (half / REPLIES_FILE).write_text('{"index": 0, "prom')
        moments.one()
        answer(method, seed, progress)
        moments.one()

    with open_run(out, recipe, folder, data, resume=True):
        wanted = Wanted(("base", "uniform", "emorl"), (1, 2), "emorl", (("emorl", "base"),), plots=False)
        run_cells(out, wanted, lambda: run_cell)
        return judge(out, wanted, recipe, folder, data, progress=lambda stage, done, total: moments.one())


def trained(folder: Path, kill_at: int = 0) -> dict[str, Any]:
    """The real methods on the tiny base in `folder`/base. Every call of a scorer is a moment."""
    moments = Moments(kill_at)
    call = Checked.__call__

    def counted(self: Checked, *args: Any, **kwargs: Any) -> list[float]:
        moments.one()
        return call(self, *args, **kwargs)

    recipe, data, _ = tiny_data(
        folder,
        base={"path": "base"},
        objectives={
            name: {"scorer": {"kind": "callable", "path": f"tests.learn.trainer_tasks:{name}_score"}}
            for name in ("reflection", "empathy")
        },
        rl={
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "max_new_tokens": 6,
            "learning_rate": 1e-2,
            "validate_every": 2,
            "validation_prompts": 4,
            "stop": {"rule": "steps", "max_steps": 4},
        },
        evaluation={"search_prompts": 3, "search_levels": 2, "scorers": {"variety": "diversity"}},
        compute={"device": "cpu", "checkpoint_every": 1},
    )
    out = folder / "out"
    Checked.__call__ = counted  # type: ignore[method-assign]
    try:
        with open_run(out, recipe, folder, data, resume=True):
            wanted = Wanted(TRAINED, (1,), "emorl", plots=False)
            run_cells(out, wanted, lambda: _prepared(recipe, folder, out))
            return judge(out, wanted, recipe, folder, data)
    finally:
        Checked.__call__ = call  # type: ignore[method-assign]


def _prepared(recipe: Any, folder: Path, out: Path) -> Any:
    experiment = prepare(recipe, folder, out, levels=2, search_prompts=3)
    return lambda method, seed, progress: run_cell(method, seed, experiment, progress)
