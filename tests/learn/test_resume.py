"""A run that was killed goes on to the same bits, and nothing half-written is ever found under its final name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from emorl_cli.main import main
from emorl_core.files.writing import appearing
from tests.apart import started
from tests.builders import tiny_t5
from tests.learn.trainer_tasks import TEXTS, tiny_recipe, tiny_trainer
from tests.modes import closed_files
from training.config import RecipeError
from training.pipeline.run import Places, train
from training.recipe.recipe import load_recipe
from training.rl import checkpoint
from training.rl.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 9
CHECKPOINT_EVERY = 2


def write_recipe(folder: Path, **values: Any) -> Path:
    """A recipe file beside a tiny base and 24 prompts. Dropout is on: its draws must come back too."""
    tiny_t5(folder / "base")
    rows = [json.dumps({"prompt": f"{text} {number}"}) for number in range(3) for text in TEXTS]
    (folder / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    recipe = tiny_recipe(
        rl={"stop": {"rule": "patience", "max_steps": STEPS}, "validate_every": 3, "learning_rate": 1e-2},
        compute={"device": "cpu", "checkpoint_every": CHECKPOINT_EVERY},
        lora={"rank": 4, "alpha": 8, "dropout": 0.3},
    )
    raw = {
        **recipe.model_dump(mode="json"),
        "data": {"sources": [{"kind": "jsonl", "path": "prompts.jsonl"}]},
        **values,
    }
    raw["objectives"] = {
        name: {"scorer": {"kind": "callable", "path": f"tests.learn.trainer_tasks:{name}_score"}}
        for name in recipe.objectives
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def kill_once_logged(line: str, log: Path, recipe: Path, places: Places) -> None:
    """`emorl train` in a process of its own, killed once this log tells that line."""
    process = started(main, ["train", str(recipe), "--out", str(places.bundle)])
    while process.is_alive():
        if log.exists() and line in log.read_text(encoding="utf-8"):
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not places.bundle.exists()


def kill_after_step(number: int, recipe: Path, places: Places) -> None:
    kill_once_logged(f'"event": "step", "step": {number}', places.run / "log.jsonl", recipe, places)


def same_run(first: Path, second: Path) -> None:
    """Every adapter file byte for byte, and what the two reports count."""
    files = sorted(path.relative_to(first) for path in first.rglob("adapter_model.safetensors"))
    assert len(files) == 6  # three objectives, best and last
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    reports = [json.loads((folder / "training.json").read_text()) for folder in (first, second)]
    for report in reports:
        for objective in report["objectives"].values():
            for seconds in ("seconds", "own_seconds"):
                del objective["consumption"][seconds]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_resuming_after_kill_9_gives_the_parameters_of_an_uninterrupted_run(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    whole = Places(tmp_path / "whole")
    train(load_recipe(path), tmp_path, whole)

    killed = Places(tmp_path / "killed")
    kill_after_step(5, path, killed)
    saved = checkpoint.latest(killed.run)
    assert saved is not None
    assert saved.step >= 4  # step 5 was under way or done: at most the steps since the last checkpoint are lost
    assert saved.step < STEPS

    told: list[Any] = []
    train(load_recipe(path), tmp_path, killed, resume=True, report=told.append)

    assert told[0]["event"] == "resume"
    assert told[0]["step"] == saved.step
    same_run(whole.bundle, killed.bundle)
    log = (killed.run / "log.jsonl").read_text()
    steps = [r["step"] for r in map(json.loads, log.splitlines()) if r["event"] == "step"]
    assert steps == list(range(1, STEPS + 1))  # no step is in the log twice


def test_resuming_at_any_checkpoint_gives_the_same_bits(tmp_path: Path) -> None:
    """The same, without processes: every step in turn is the last one before the interruption."""
    recipe = tiny_recipe(lora={"rank": 4, "alpha": 8, "dropout": 0.3}, rl={"reward": "standardised"})
    whole = tiny_trainer(tmp_path, recipe, run="whole")
    whole.run()
    expected = [value for o in whole.objectives for value in (*whole.stacks.values(o.lane), *o.best)]
    for stop_at in range(4):
        first = tiny_trainer(tmp_path, recipe, run=f"run-{stop_at}")
        first.start()
        for _ in islice(first.steps(), stop_at):
            pass
        first.save()
        torch.rand(3)  # the new process has another random state
        second = tiny_trainer(tmp_path, recipe, run=f"run-{stop_at}")
        second.run(resume=True)
        found = [value for o in second.objectives for value in (*second.stacks.values(o.lane), *o.best)]
        assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True)), stop_at
        for one, two in zip(whole.objectives, second.objectives, strict=True):
            assert one.statistics == two.statistics
            assert one.stop == two.stop
            assert one.consumption.tokens == two.consumption.tokens
            moments = two.optimizer.moments()
            assert all(torch.equal(moment, moments[key]) for key, moment in one.optimizer.moments().items())


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.run(resume=True)
    assert trainer.taken == 4


def test_a_checkpoint_of_another_recipe_or_other_data_is_refused(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.run()
    other = tiny_trainer(tmp_path)
    other.task.fingerprint["recipe"] = "another"
    with pytest.raises(RecipeError, match="another recipe"):
        other.run(resume=True)


def test_a_finished_run_writes_its_bundle_again_on_resume(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the bundle: nothing is trained twice."""
    path = write_recipe(tmp_path)
    recipe = load_recipe(path, ["rl.stop.max_steps=2"])
    first, places = Places(tmp_path / "first"), Places(tmp_path / "again")
    train(recipe, tmp_path, first)
    first.run.rename(places.run)
    told: list[Any] = []
    train(recipe, tmp_path, places, resume=True, report=told.append)
    assert [record["event"] for record in told] == ["resume"]
    same_run(first.bundle, places.bundle)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    places = Places(tmp_path / "out")
    places.bundle.mkdir()
    (places.bundle / "precious.txt").write_text("mine")
    with pytest.raises(RecipeError, match="--overwrite"):
        train(load_recipe(path), tmp_path, places)
    assert (places.bundle / "precious.txt").read_text() == "mine"
    assert not places.run.exists()
    (places.bundle / "precious.txt").unlink()
    places.run.mkdir()
    with pytest.raises(RecipeError, match="--resume"):
        train(load_recipe(path), tmp_path, places)
    recipe = load_recipe(path, ["rl.stop.max_steps=1"])
    train(recipe, tmp_path, places, overwrite=True)
    assert (places.bundle / "bundle.yaml").exists()
    assert [each.name for each in tmp_path.glob(".*")] == []


def test_random_states_of_torch_numpy_and_python_come_back(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    torch.manual_seed(1)
    checkpoint.save(tmp_path, Checkpoint(3, {"x": torch.ones(2)}, {"task": {}}))
    expected = draw()
    assert draw() != expected
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    checkpoint.restore_process(saved)
    assert draw() == expected


def test_a_resumed_run_computes_with_the_number_of_threads_that_it_had(tmp_path: Path) -> None:
    """Sums round differently with another, and two runs part at the last bit."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        checkpoint.save(tmp_path, Checkpoint(1, {}, {}))
        torch.set_num_threads(1)
        saved = checkpoint.latest(tmp_path)
        assert saved is not None
        checkpoint.restore_process(saved)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_floats_survive_a_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1e-300, 1 / 3, 2.0**-1074]
    checkpoint.save(tmp_path, Checkpoint(1, {}, {"numbers": numbers}))
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.state["numbers"] == numbers
    assert closed_files(tmp_path) == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_killed_while_it_is_written_does_not_appear(tmp_path: Path, replace: bool) -> None:
    target = tmp_path / "target"
    if replace:
        target.mkdir()
        (target / "old").write_text("old")
    code = (
        "import os, pathlib, sys\n"
        "from emorl_core.files.writing import appearing\n"
        f"with appearing(pathlib.Path(sys.argv[1]), replace={replace}) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert ([path.name for path in target.iterdir()] if replace else target.exists()) == (["old"] if replace else False)
    with appearing(target, replace=replace) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 1  # what the killed program left is gone


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / ".target.77.old").mkdir()
    (tmp_path / ".target.77.old" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), appearing(target, replace=True):
        raise ZeroDivisionError
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with appearing(target) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), appearing(target, replace=True) as folder:  # noqa: PT012 - what is tested
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert [path.name for path in target.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1
