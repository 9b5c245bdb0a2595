"""An adapter's two files as they come: broken, foreign, of two adapters, and never more than a file."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from emorl_core.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE, read_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR
from tests.core.adapter_folders import KEY, Q, edit_weights, refusal


@pytest.fixture
def folder(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter, to be spoilt."""
    return Path(shutil.copytree(plain_bundle / ADAPTERS_DIR / "empathy", tmp_path / "spoilt"))


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    assert f"has no {WEIGHTS_FILE}" in refusal(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(print))
    assert "adapter_model.bin is a pickle, which is not loaded" in refusal(folder)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"not safetensors")
    assert f"{WEIGHTS_FILE} cannot be read" in refusal(folder)
    (folder / CONFIG_FILE).write_text("{")
    assert f"{CONFIG_FILE} cannot be read as JSON" in refusal(folder)
    (folder / CONFIG_FILE).write_text("[]")
    assert "must be a JSON object" in refusal(folder)
    (folder / CONFIG_FILE).unlink()
    assert f"has no {CONFIG_FILE}; allowed: a PEFT LoRA folder" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"peft_type": "LORA", "lora_alpha": 8, "lora_alpha": 16}', "key 'lora_alpha' stands twice"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 700\n", "is a Git LFS pointer"),
        (b"\xff\xfe{}", "it is not UTF-8 but UTF-16"),
    ],
)
def test_a_config_that_would_mislead_or_never_end_is_refused(content: bytes, reason: str, folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    message = refusal(folder)
    assert CONFIG_FILE in message
    assert reason in message


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_file_that_is_none_or_has_no_end_is_refused_at_once(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert f"{file} is a FIFO; allowed: a regular file" in refusal(folder)
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    assert f"{file} is a device" in refusal(folder)
    (folder / file).unlink()
    with open(folder / file, "wb") as huge:
        huge.truncate(2**40)
    assert f"{file} is larger than" in refusal(folder)
    (folder / file).unlink()
    (folder / file).mkdir()
    assert f"{file} is a folder" in refusal(folder)


def test_weights_that_are_a_pointer_of_git_lfs_are_called_that(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert f"{WEIGHTS_FILE} is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`" in refusal(
        folder
    )


def test_a_file_that_may_not_be_read_is_not_called_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)  # the suite may run as a user that may read everything
    assert "Permission denied" in refusal(folder)


def test_a_name_without_end_is_refused_and_not_repeated(folder: Path) -> None:
    key = f"base_model.model.{'q' * 100_000}.lora_A.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(4, 32)}))
    assert "a tensor's name has 100,031 letters; allowed: up to 300" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_need_a_scale_of_their_own_are_refused(dtype: torch.dtype, folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({KEY: torch.ones(4, 32).to(dtype)}))
    assert f"tensor {KEY!r} is {str(dtype)[6:]}; allowed: float32, bfloat16, float16, float64" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_plain_numbers_of_any_width_are_read(dtype: torch.dtype, folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({KEY: torch.ones(4, 32).to(dtype)}))
    assert torch.equal(read_peft(folder, "empathy").modules[Q].a, torch.ones(4, 32))


def test_what_is_read_is_no_map_of_the_file(folder: Path) -> None:
    """Of a mapped file, what is written into it later would be served."""
    adapter = read_peft(folder, "empathy")
    before = adapter.modules[Q].a.clone()
    with open(folder / WEIGHTS_FILE, "r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        file.write(b"\0" * 10_000)
    assert torch.equal(adapter.modules[Q].a, before)


def test_names_with_the_adapter_inside_are_read_too(folder: Path) -> None:
    """Some trainers save `lora_A.default.weight`."""
    before = read_peft(folder, "empathy")

    def rename(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    after = read_peft(edit_weights(folder, rename), "empathy")
    assert set(after.modules) == set(before.modules)


def twice(rename: Callable[[str], str]) -> Callable[[dict[str, Tensor]], object]:
    """Every tensor once more under another name, with other numbers."""
    return lambda tensors: tensors.update({rename(key): tensor * 2 for key, tensor in tensors.items()})


@pytest.mark.parametrize(
    "edit",
    [
        twice(lambda key: key.replace(".weight", ".reference.weight")),
        twice(lambda key: key.removeprefix("base_model.model.")),
        lambda tensors: [
            tensors.update(
                {key.replace(".weight", f".{name}.weight"): tensor.clone() for name in ("default", "reference")}
            )
            for key, tensor in list(tensors.items())
            if tensors.pop(key) is not None
        ],
        # No key twice, and yet of two: A of one and B of the other, or a module of each.
        lambda tensors: tensors.update({KEY.replace(".weight", ".reference.weight"): tensors.pop(KEY)}),
        lambda tensors: [
            tensors.update({key.replace(".weight", ".other.weight"): tensors.pop(key)})
            for key in list(tensors)
            if "decoder" in key
        ],
        lambda tensors: tensors.update({KEY.removeprefix("base_model.model."): tensors.pop(KEY)}),
    ],
    ids=["second", "unprefixed", "both named", "halves", "modules", "one unprefixed"],
)
def test_two_adapters_in_one_file_are_refused(edit: Callable[[dict[str, Tensor]], object], folder: Path) -> None:
    """The last one read would win."""
    assert "it holds two adapters, as by '" in refusal(edit_weights(folder, edit))
