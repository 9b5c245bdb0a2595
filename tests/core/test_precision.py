"""What `auto` means for device and number format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.machine.precision import pick_device, pick_dtype
from tests.core.conftest import PROMPTS

CPU = torch.device("cpu")


def test_auto_takes_cuda_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto") == CPU


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it_natively(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert pick_dtype("auto", CPU) is expected
    assert pick_dtype("float32", CPU) is torch.float32
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_cuda_asks_the_card(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    assert pick_dtype("auto", torch.device("cuda")) is (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x", "", "meta"])
def test_a_device_that_is_none_of_ours_is_refused(device: str) -> None:
    with pytest.raises(InvalidRequest, match="allowed: auto, cpu, cuda, cuda:<number>") as caught:
        pick_device(device)
    assert caught.value.param == "device"


def test_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_device("cuda:1").index == 1
    for device in ("cuda:2", "cuda:99"):
        with pytest.raises(InvalidRequest, match="this machine has 2 CUDA devices"):
            pick_device(device)


@pytest.mark.parametrize("dtype", ["float16", "fp32", "", "int8"])
def test_a_number_format_that_is_none_of_ours_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match="allowed: auto, float32, bfloat16") as caught:
        pick_dtype(dtype, CPU)
    assert caught.value.param == "dtype"


def test_ragged_rows_forks_and_replays_run_in_bfloat16_without_a_fault(plain_bundle: Path) -> None:
    """A fault that running each request alone gets over would go unseen, so it is counted. The float32 cache of a CPU
    beside bfloat16 rows and masks is where it came from."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="bfloat16", slots=2)
    for number, prompt in enumerate(PROMPTS):
        ensemble.engine.add(ensemble.request(prompt, profile="balanced", max_new_tokens=3 + 2 * number))
    while ensemble.engine.has_work:
        ensemble.engine.step()
    swept = ensemble.sweep(PROMPTS[:2], resolution=6, max_new_tokens=12)
    assert len(swept.distinct(0)) > 2, "or nothing forked, and no branch waited for a slot and was fed its tokens again"
    assert ensemble.engine.stats.faults == 0
