"""Memory on huge pages: the values stay, the process does not grow."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.lanes import huge_pages
from emorl_core.lanes.huge_pages import use_huge_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_what_moves_keeps_its_values_and_needs_no_more_memory() -> None:
    values = torch.arange(16 * 2**20, dtype=torch.int32)  # 64 MiB
    before = psutil.Process().memory_info().rss
    use_huge_pages()
    assert psutil.Process().memory_info().rss < before + 8 * 2**20
    assert torch.equal(values, torch.arange(16 * 2**20, dtype=torch.int32))


@pytest.mark.skipif(not ENABLED.is_file() or "[never]" in ENABLED.read_text(), reason="no huge pages here")
def test_large_tensors_move() -> None:
    release = re.match(r"(\d+)\.(\d+)", Path("/proc/sys/kernel/osrelease").read_text())
    if release is None or tuple(map(int, release.groups())) < (6, 1):
        pytest.skip("this kernel takes advice only")
    values = torch.ones(16 * 2**20)
    assert use_huge_pages() > 0
    assert bool((values == 1).all())


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages() == 0


@pytest.mark.parametrize(("least", "asked"), [(1, 1), (huge_pages.WORTH_FROM, 0)], ids=["large", "small"])
def test_only_a_model_that_gains_by_it_asks_for_them(
    least: int, asked: int, plain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(huge_pages, "WORTH_FROM", least)
    monkeypatch.setattr(huge_pages, "use_huge_pages", lambda: calls.append(1))
    Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    assert len(calls) == asked
