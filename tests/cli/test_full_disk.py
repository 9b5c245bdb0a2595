"""A disk that fills up under a long command: one line, no traceback, and nothing that was finished is lost.

The disk is full in earnest: no file may grow beyond a limit, which every verb meets at another place.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emorl_cli.main import main
from emorl_core.bundles.bundle import BUNDLE_FILE, Bundle, read_spec
from emorl_core.ensemble import Ensemble
from tests.cli.test_evaluate import recipe as comparison  # noqa: F401  a fixture
from tests.cli.test_search import prompts, search  # noqa: F401  fixtures
from tests.cli.test_train_scorer import GRADED, QUICK
from tests.cli.test_train_scorer import folder as graded  # noqa: F401  a fixture
from tests.documents import ROOT
from tests.learn.test_resume import write_recipe
from training.pipeline.demo import build_demo

KB = 1000


@contextmanager
def room_for(limit: int) -> Iterator[None]:
    """No file gets larger than `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(capsys: pytest.CaptureFixture[str], limit: int, *argv: object) -> str:
    """Run out of room; the one line that says so."""
    capsys.readouterr()
    with room_for(limit):
        assert main([str(word) for word in argv]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("emorl: error: ") for line in lines) == 1
    assert lines[-1].startswith("emorl: error: ")
    assert "could not be written: " in lines[-1]
    assert "make room and run it again" in lines[-1]
    return lines[-1]


def ran(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


def leftovers(folder: Path) -> list[str]:
    """What a command left half-written."""
    return [path.name for path in folder.rglob("*") if path.name.endswith((".new", ".tmp", ".old"))]


@pytest.mark.slow
def test_training_goes_on_from_its_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    argv = ("train", recipe, "--set", "rl.stop.max_steps=4", "--objective", "empathy", "--out")
    ran(*argv, tmp_path / "whole")
    # The log; the first checkpoint; the base in the bundle, when all is trained.
    for limit in (1 * KB, 20 * KB, 260 * KB):
        line = full(capsys, limit, *argv, tmp_path / "out", "--resume")
        assert "--resume goes on with what is finished" in line
        assert not (tmp_path / "out").exists()
        assert leftovers(tmp_path) == []
    capsys.readouterr()
    ran(*argv, tmp_path / "out", "--resume")
    assert "step 4: resume" in capsys.readouterr().err  # no step was trained twice
    for place in ("adapters", "adapters-last"):
        one, other = (tmp_path / out / place / "empathy" / "adapter_model.safetensors" for out in ("whole", "out"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_warm_start_goes_on_from_its_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    rows = [json.dumps({"prompt": f"i feel sad {i}", "response": f"you feel sad about {i}"}) for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    start = "{scratch: {vocab_size: 700, d_model: 16, d_ff: 16, heads: 2}, fit: {steps: 4, batch_size: 4, checkpoint_every: 2}}"
    argv = ("warm-start", recipe, "--set", "data.sources.0.response=response", "--set", f"base={{warm_start: {start}}}")
    ran(*argv, "--out", tmp_path / "whole")
    weights = (tmp_path / "whole" / "model.safetensors").stat().st_size
    # The weights of the first checkpoint; the optimizer's state, which is twice as large.
    for limit in (weights // 2, weights + weights // 2):
        full(capsys, limit, *argv, "--out", tmp_path / "made")
        assert not (tmp_path / "made").exists()
        assert leftovers(tmp_path) == []
    capsys.readouterr()
    ran(*argv, "--out", tmp_path / "made")
    said = capsys.readouterr()
    assert "warm start: 4 of 4" in said.err
    assert "written after 4 steps, loss " in said.out
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_scorer_goes_on_after_its_last_whole_epoch(graded: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    argv = ("train-scorer", *GRADED, *QUICK, "--epochs", 2, "--out")
    ran(*argv, "whole")
    weights = (graded / "whole" / "model.safetensors").stat().st_size
    full(capsys, weights // 2, *argv, "new")  # before an epoch was kept
    assert leftovers(graded) == []
    full(capsys, weights // 2, *argv, "new")  # so there is nothing to resume, and nothing in the way
    state = graded / ".new.partial" / "state.pt"
    ran(*argv, "other")
    assert not state.exists()
    full(capsys, 3 * weights, *argv, "new")
    assert not (graded / "new").exists()
    ran(*argv, "new")
    assert (graded / "new" / "model.safetensors").read_bytes() == (graded / "whole" / "model.safetensors").read_bytes()


def test_a_search_keeps_its_evaluations(
    search,  # noqa: F811
    own_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = read_spec(own_bundle / BUNDLE_FILE)
    logged = tmp_path / "out" / "evaluations.jsonl"
    options = ("--no-plots", "--levels", 3)
    anew = json.loads(search(*options, "--json", "--no-write", "--out", tmp_path / "whole").out)
    with room_for((tmp_path / "whole" / "evaluations.jsonl").stat().st_size - 10):
        result = search(*options)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].endswith("make room and run it again; --resume goes on with what is finished")
    assert logged.stat().st_size > 0
    assert not (tmp_path / "out" / "report.json").exists()
    assert read_spec(own_bundle / BUNDLE_FILE) == before
    kept = logged.read_text().count("\n") - 1
    report = json.loads(search(*options, "--json", "--resume").out)
    assert report["evaluations"]["resumed"] == kept > 0
    assert anew["candidates"] == report["candidates"]


def test_a_comparison_keeps_its_cells_and_calls_none_failed(
    emorl,
    comparison: Path,  # noqa: F811
) -> None:
    assert emorl("evaluate", comparison, "--no-plots", "--methods", "base").code == 0
    out = comparison.parent / "evaluation-tiny"
    done = out / "cells" / "base" / "seed-1" / "cell.json"
    before = done.read_bytes()
    with room_for(200):
        stopped = emorl("evaluate", comparison, "--no-plots", "--resume")
    assert (stopped.code, stopped.out) == (1, "")
    assert stopped.err.count("emorl: error: ") == 1
    assert "--resume goes on with what is finished" in stopped.err.splitlines()[-1]
    assert "failed" not in stopped.err
    assert done.read_bytes() == before
    assert not (out / "cells" / "emorl" / "seed-1" / "cell.json").exists()
    assert emorl("evaluate", comparison, "--no-plots", "--resume").code == 0


def test_the_demo_is_built_whole_or_not_at_all(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.pipeline import demo

    def build_bundle(work: Path, recipe: object, progress: object) -> None:
        import shutil

        if not (work / demo.BUNDLE_DIR).exists():
            (work / "trained").touch()
            shutil.copytree(bundle, work / demo.BUNDLE_DIR)

    monkeypatch.setattr(demo, "build_bundle", build_bundle)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    full(capsys, 20 * KB, "demo", "--tiny", "--folder", tmp_path / "demo", "--build-only")
    assert not (tmp_path / "demo").exists()
    ran("demo", "--tiny", "--folder", tmp_path / "demo", "--build-only")
    assert Bundle.open(tmp_path / "demo")
    assert build_demo(tmp_path / "demo") == tmp_path / "demo"


@pytest.mark.parametrize(
    "argv",
    [["generate", "b", "family"], ["generate", "b", "family", "--json"], ["sweep", "b", "x", "--resolution", "2"]],
)
def test_an_answer_that_cannot_be_printed_is_one_line(
    emorl, fake: Ensemble, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        ran = emorl(*argv)
        assert ran.code == 1
        assert (
            ran.err
            == "emorl: error: a file could not be written: No space left on device; make room and run it again\n"
        )


def test_the_interpreter_adds_nothing_when_its_output_cannot_be_written() -> None:
    with open("/dev/full", "w") as full_disk:
        done = subprocess.run(
            [sys.executable, "-m", "emorl_cli", "--help"],
            stdout=full_disk,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr


def test_other_trouble_with_files_is_one_line_too(emorl, own_bundle: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    argv = ("search", own_bundle, "--prompts", "p.txt", "--scorer", "a=length", "--no-plots")
    (tmp_path / "p.txt").write_text(
        "".join(f"i feel {word} today\n" for word in "sad low numb lost tired small".split())
    )
    monkeypatch.chdir(tmp_path)
    ran = emorl(*argv, "--levels", 1, "--max-new-tokens", 2, "--out", tmp_path / "file" / "out")
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == f"emorl: error: {tmp_path / 'file' / 'out'}: Not a directory"
    assert "Traceback" not in ran.err
