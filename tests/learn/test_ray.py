"""Cells and searches as tasks of a real Ray cluster of two workers: the same files as without it, also when workers are
killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.builders import tiny_t5, tiny_t5_bundle
from tests.learn.evaluation_cells import tiny_recipe
from tests.learn.own_scorers import KILL_ONCE

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
METHODS = "base,uniform,emorl,best-of:emorl"
SCORER = "{kind: callable, path: tests.learn.own_scorers:share_of_letters_in_a_worker_that_may_die}"
LOGS = ("evaluations.jsonl", "held-out.jsonl")
HEAD = """
import ray
for left in (2, 1, 0):  # Ray gives a node 30 s to start, which a busy machine may need
    try:
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
        break
    except Exception:
        if not left:
            raise
print("up", flush=True)
input()
"""


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Of commands for which `--ray auto` is a cluster of two cores."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short, as sockets need it
        variables = {
            **os.environ,
            "RAY_TMPDIR": folder,
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),  # workers import a scorer of these tests
            KILL_ONCE: f"{folder}/kill-once",
        }
        command = [sys.executable, "-c", HEAD]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as head:
            assert head.stdout is not None
            assert any(line == "up\n" for line in head.stdout)
            try:
                yield variables
            finally:
                head.communicate("\n", timeout=300)


def start_evaluation(folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`emorl evaluate` of a tiny recipe in a folder, on the cluster or without one."""
    folder.mkdir()
    tiny_t5(folder / "base")
    recipe = tiny_recipe(
        folder,
        base={"path": "base"},
        rl={
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "max_new_tokens": 6,
            "validate_every": 2,
            "validation_prompts": 4,
            "stop": {"rule": "steps", "max_steps": 4},
        },
        evaluation={"search_prompts": 3, "search_levels": 2, "scorers": {"variety": "diversity"}},
        compute={"device": "cpu", "checkpoint_every": 1},
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "emorl_cli", "evaluate", str(folder / "tiny.yaml"), "--out", str(folder / "out")]
    command += [
        "--methods",
        METHODS,
        "--threads",
        "1",
        "--no-plots",
        *([] if environment is None else ["--ray", "auto"]),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished_evaluation(running: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Every reply's bytes, and the results but for times."""
    out, err = running.communicate(timeout=900)
    assert running.returncode == 0, out + err
    results = json.loads((folder / "out" / "results.json").read_text())
    for method in results["methods"].values():
        assert method.pop("measured")
    cells = sorted((folder / "out" / "cells").glob("*/*/replies.jsonl"))
    assert len(cells) == len(METHODS.split(","))
    return {"results": results, **{str(each.relative_to(folder)): each.read_bytes() for each in cells}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return finished_evaluation(start_evaluation(folder), folder)


def test_cells_come_out_as_on_one_machine(environment: dict[str, str], alone: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finished_evaluation(start_evaluation(folder, environment), folder) == alone


def test_killed_workers_change_nothing(environment: dict[str, str], alone: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start_evaluation(folder, environment)
    try:
        until = time.monotonic() + 600
        while not list(folder.glob("out/shared/seed-1/*.run/log.jsonl")):
            assert running.poll() is None, "it ended before a training began"
            assert time.monotonic() < until, "no training began"
            time.sleep(0.02)
        killed = [each for each in psutil.process_iter(["cmdline"]) if _runs_a_cell(each, environment)]
        for worker in killed:
            os.kill(worker.pid, signal.SIGKILL)
        assert killed
        assert finished_evaluation(running, folder) == alone
    finally:
        running.kill()
        running.wait()


def _runs_a_cell(process: psutil.Process, environment: dict[str, str]) -> bool:
    try:
        name = " ".join(process.info["cmdline"] or [])
        return name.startswith("ray::_cell") and process.environ()["RAY_TMPDIR"] == environment["RAY_TMPDIR"]
    except (psutil.Error, KeyError):
        return False


# --- searches --------------------------------------------------------------------------------------------------------


def search(folder: Path, bundle: Path, levels: int, *options: str, environment: dict[str, str] | None = None) -> None:
    """`emorl search` over ten prompts, on the cluster or without one."""
    folder.mkdir(exist_ok=True)
    words = "sad tired angry lost small empty tense numb worried hurt".split()
    (folder / "prompts.txt").write_text("".join(f"i feel {word} and cannot sleep\n" for word in words))
    command = [sys.executable, "-m", "emorl_cli", "search", str(bundle), "--prompts", str(folder / "prompts.txt")]
    command += ["--scorer", "long={kind: length, min_words: 1, max_words: 9}", "--scorer", f"letters={SCORER}"]
    command += ["--levels", str(levels), "--max-new-tokens", "6", "--out", str(folder / "out"), "--no-write"]
    command += ["--no-plots", "--device", "cpu", "--dtype", "float32", "--threads", "1", *options]
    command += [] if environment is None else ["--ray", "auto"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def found_by(folder: Path, *, resumed: bool = False) -> dict[str, Any]:
    """Every evaluation's bytes, and the report but for times and for how the work was shared.

    resumed: without what was done the second time.
    """
    report = json.loads((folder / "out" / "report.json").read_text())
    counts = report["evaluations"]
    for name in ["lane_row_steps", *(["resumed", *(key for key in counts if "texts" in key)] if resumed else [])]:
        del counts[name]
    del report["seconds"], counts["unshared_lane_row_steps"]
    return {"report": report, **{name: (folder / "out" / name).read_bytes() for name in LOGS}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("bundles") / "my-bundle")


@pytest.fixture(scope="module")
def searched(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "run"
    search(folder, bundle, 2)
    return folder


def test_a_search_whose_worker_is_killed_finds_what_one_machine_finds(
    environment: dict[str, str], bundle: Path, searched: Path, tmp_path: Path
) -> None:
    kill = Path(environment[KILL_ONCE])
    kill.touch()
    search(tmp_path / "run", bundle, 2, environment=environment)
    assert not kill.exists(), "a worker was killed"
    assert found_by(tmp_path / "run") == found_by(searched)


def test_a_search_goes_on_upon_a_cluster(
    environment: dict[str, str], bundle: Path, searched: Path, tmp_path: Path
) -> None:
    search(tmp_path / "run", bundle, 1, environment=environment)
    search(tmp_path / "run", bundle, 2, "--resume", environment=environment)
    assert found_by(tmp_path / "run", resumed=True) == found_by(searched, resumed=True)
