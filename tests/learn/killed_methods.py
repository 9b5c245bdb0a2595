"""A few cells of a comparison, for tests that kill it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.learn.test_resume import write_recipe
from tests.learn.trainer_tasks import NAMES, TEXTS
from training.evaluation.methods.experiment import Experiment, prepare
from training.evaluation.methods.methods import run_cell
from training.recipe.recipe import load_recipe

METHODS = ("dynaopt", "weights", "emorl-anchored", "sentences", "best-of:uniform", "per-prompt:predicted")
FITTED = 6  # pairs an adapter: three steps of two
SPLITS = {"train": 0.5, "validation": 0.25, "test": 0.25}


def tiny_experiment(folder: Path) -> Experiment:
    """Six test prompts on a tiny base, three steps on given replies and nine of reinforcement, a search of two levels."""
    path = folder / "recipe.yaml"
    if not path.exists():
        pairs = [json.dumps({"prompt": f"{text} 7", "response": ("yes", "no")[n % 2]}) for n, text in enumerate(TEXTS)]
        (folder / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
        given = [{"kind": "jsonl", "path": "pairs.jsonl", "response": "response"}]
        start = {"sources": dict.fromkeys(NAMES, given), "steps": 3, "batch_size": 2, "learning_rate": 1e-3}
        write_recipe(folder, adapter_start=start)
    told = [f"evaluation.sentences.{name}=Answer with {name}." for name in NAMES]
    told.append("evaluation.instruction=Answer a client with reflection, empathy and fluency.")
    told += ["evaluation.front_prompts=2", "evaluation.predictor_prompts=4"]
    recipe = load_recipe(path, [f"data.splits={SPLITS}", *told])
    return prepare(recipe, folder, folder / "out", levels=2)


def run(folder: Path, event: str = "", count: int = 0) -> None:
    """The process kills itself when the run tells `event`, the beginning of a stage's name, for the `count`-th time."""
    told = 0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal told
        told += bool(event) and stage.startswith(event)
        if event and told == count:
            os.kill(os.getpid(), signal.SIGKILL)

    experiment = tiny_experiment(folder)
    for method in METHODS:
        run_cell(method, 7, experiment, report)
