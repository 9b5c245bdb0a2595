"""A full disk is known for what it is, whichever library stumbled over it: really full here, by a limit on a file's size."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from emorl_core.errors import EmorlError
from emorl_core.files.disk import disk_full

LARGE = {"a": torch.zeros(100_000)}


def copy_tree(folder: Path) -> None:
    shutil.copytree(folder / "large", folder / "copy")


def to_open_file(folder: Path) -> None:
    with open(folder / "f", "wb") as file:
        torch.save(LARGE, file)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: (folder / "f").write_text("x" * 400_000),
    "safetensors": lambda folder: save_file(LARGE, folder / "f"),
    "tokenizers": lambda folder: Tokenizer(
        models.WordLevel({f"word{n}": n for n in range(20_000)}, unk_token="word0")
    ).save(str(folder / "f")),
    "torch, by name": lambda folder: torch.save(LARGE, folder / "f"),
    "torch, open file": to_open_file,
    "torch, without zip": lambda folder: torch.save(LARGE, folder / "f", _use_new_zipfile_serialization=False),
    "numpy": lambda folder: np.savez(folder / "f", a=np.zeros(100_000)),
    "one copy": lambda folder: shutil.copyfile(folder / "large" / "file", folder / "f"),
    "copies": copy_tree,
}


@pytest.fixture
def little_room(tmp_path: Path) -> Iterator[Path]:
    """A folder where no file may get larger than 10 kB."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(b"x" * 400_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield tmp_path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_s_complaint_is_understood(writer: str, little_room: Path) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  each has its own type
        WRITERS[writer](little_room)
    assert disk_full(caught.value) in ("File too large", "it was cut short")
    assert (disk_full(caught.value) == "it was cut short") == (writer == "torch, by name")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_lies_behind_an_error_counts_too(number: int) -> None:
    full = OSError(number, "no room")
    outer = RuntimeError("while saving")
    outer.__cause__ = full
    outermost = ValueError("x")
    outermost.__context__ = outer
    outer.__context__ = outermost  # a circle ends
    assert disk_full(full) == disk_full(outer) == disk_full(outermost)
    assert disk_full(full)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("No such thing"),
        EmorlError("prompt 28 is empty"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "os error 28"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("line 28, os error 2"),
    ],
)
def test_other_errors_are_none_of_it(error: Exception) -> None:
    assert disk_full(error) is None
