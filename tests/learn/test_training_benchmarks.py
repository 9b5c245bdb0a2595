"""The programs that measure training run, and say what they measured. No time is judged here."""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

import pytest


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The line for machines."""
    monkeypatch.setattr(sys, "argv", list(words))
    capsys.readouterr()
    runpy.run_module(words[0], run_name="__main__")
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_three_objectives_in_one_run_beside_three_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--prompts", "2", "--samples", "2", "--source", "12", "--new", "8", "--mean", "6", "--rounds", "1")
    found = printed(
        monkeypatch,
        capsys,
        "benchmarks.training.causal",
        "--shape",
        "tiny",
        *sizes,
        "--threads",
        "1",
        "--device",
        "cpu",
    )
    for side in ("reply", "all", "apart", "peft"):
        assert {"total", "rollout", "gradient", "processor"} <= set(found[side])
        assert 1 <= found[side]["tokens"] <= 8
    assert found["reply"]["tokens"] == found["apart"]["tokens"]  # the same samples, and the same adapters of them
    assert {name for name in found if "_over_" in name} == {
        "apart_over_reply", "apart_over_all", "peft_over_reply", "peft_over_all"
    }  # fmt: skip


@pytest.mark.slow
def test_three_objectives_in_lockstep_beside_loops_in_peft(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--prompts", "2", "--samples", "2", "--source", "8", "--new", "4", "--rounds", "1", "--threads", "1")
    found = printed(
        monkeypatch, capsys, "benchmarks.training.lockstep", "--shape", "t5-tiny", *sizes, "--device", "cpu"
    )
    assert set(found["plain_over_ours"]) == {"median", "least", "most", "processor"}
