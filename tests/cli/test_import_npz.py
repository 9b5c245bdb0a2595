"""`emorl import-npz`: the published format becomes a PEFT folder with the same numbers, or nothing at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from emorl_core.adapters.adapter import Adapter, read_peft
from emorl_core.files.hashes import weights_hash
from tests.modes import closed_files


@pytest.fixture
def adapter(bundle: Path) -> Adapter:
    return read_peft(bundle / "adapters" / "empathy", "empathy")


@pytest.fixture
def npz(adapter: Adapter, tmp_path: Path) -> Path:
    """The same adapter as its authors publish it: method.md section 7."""
    arrays: dict[str, np.ndarray] = {}
    for module, pair in adapter.modules.items():
        arrays[f"base_model.model.{module}_loraA"] = pair.a.numpy()
        arrays[f"base_model.model.{module}_loraB"] = pair.b.numpy()
        arrays[f"base_model.model.{module}_scaling"] = np.array(pair.scale)
    path = tmp_path / "empathy.npz"
    np.savez(path, **arrays)
    return path


def test_the_folder_holds_the_same_update_of_every_module(
    emorl, adapter: Adapter, npz: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "empathy"
    ran = emorl("import-npz", npz, "--base", bundle / "base", "--out", out, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == {
        "out": str(out), "modules": len(adapter.modules), "ranks": [4], "parameters": adapter.parameters,
    }  # fmt: skip
    written = read_peft(out, "empathy")
    assert written.modules.keys() == adapter.modules.keys()
    for module, pair in adapter.modules.items():
        assert written.modules[module].delta().equal(pair.delta())
    assert written.base_sha256 == weights_hash(bundle / "base")
    assert closed_files(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["empathy"]  # no scratch left behind
    assert str(bundle) not in (out / "adapter_config.json").read_text()  # a machine's path means nothing elsewhere


def test_people_get_a_sentence(emorl, npz: Path, bundle: Path, tmp_path: Path) -> None:
    ran = emorl("import-npz", npz, "--base", bundle / "base", "--out", tmp_path / "out")
    assert "42 modules of rank 4" in ran.out


def test_an_adapter_of_another_base_is_refused_and_nothing_written(
    emorl, npz: Path, bundle: Path, tmp_path: Path
) -> None:
    with np.load(npz) as archive:
        arrays = {key.replace("encoder.block.0", "encoder.block.7"): archive[key] for key in archive.files}
    np.savez(npz, **arrays)
    ran = emorl("import-npz", npz, "--base", bundle / "base", "--out", tmp_path / "out")
    assert "encoder.block.7" in ran.refused()
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_and_overwrites_nothing(emorl, npz: Path, bundle: Path, tmp_path: Path) -> None:
    base = bundle / "base"
    full = tmp_path / "full"
    full.mkdir()
    (full / "keep").write_text("me")
    assert "already holds something" in emorl("import-npz", npz, "--base", base, "--out", full).refused()
    assert [path.name for path in full.iterdir()] == ["keep"]
    out = tmp_path / "out"
    assert "no such file" in emorl("import-npz", tmp_path / "nope.npz", "--base", base, "--out", out).refused()
    (tmp_path / "text.npz").write_text("hello")
    assert (
        "cannot be read as .npz" in emorl("import-npz", tmp_path / "text.npz", "--base", base, "--out", out).refused()
    )
    os.mkfifo(tmp_path / "fifo.npz")
    assert "is a FIFO" in emorl("import-npz", tmp_path / "fifo.npz", "--base", base, "--out", out).refused()
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    assert "'weights'" in emorl("import-npz", tmp_path / "other.npz", "--base", base, "--out", out).refused()
    assert "hub id" in emorl("import-npz", npz, "--base", tmp_path / "nope", "--out", out).refused()
    assert not out.exists()
