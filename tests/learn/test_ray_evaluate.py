"""Cells as tasks of a real Ray cluster of two workers: the same files as without it, also when workers are killed."""

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

from tests.builders import tiny_t5
from tests.learn.evaluation_cells import tiny_recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow]

METHODS = "base,uniform,emorl,best-of:emorl"
HEAD = """
import ray
ray.init(num_cpus=2, include_dashboard=False)
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
        }
        command = [sys.executable, "-c", HEAD]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as head:
            assert head.stdout is not None
            assert any(line == "up\n" for line in head.stdout)
            try:
                yield variables
            finally:
                head.communicate("\n", timeout=120)


def start(folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
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


def finished(running: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
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
    return finished(start(folder), folder)


def test_cells_come_out_as_on_one_machine(environment: dict[str, str], alone: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finished(start(folder, environment), folder) == alone


def test_killed_workers_change_nothing(environment: dict[str, str], alone: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start(folder, environment)
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
        assert finished(running, folder) == alone
    finally:
        running.kill()
        running.wait()


def _runs_a_cell(process: psutil.Process, environment: dict[str, str]) -> bool:
    try:
        name = " ".join(process.info["cmdline"] or [])
        return name.startswith("ray::_cell") and process.environ()["RAY_TMPDIR"] == environment["RAY_TMPDIR"]
    except (psutil.Error, KeyError):
        return False
