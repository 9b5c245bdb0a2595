"""Files: read within bounds, written whole or not at all and for others to read."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from emorl_core.files.hashes import folder_hash, weights_hash
from emorl_core.files.reading import (
    Missing,
    Unreadable,
    check_folder,
    is_folder,
    is_lfs_pointer,
    open_regular,
    read_bytes,
)
from emorl_core.files.writing import appearing, follow_umask, replacing

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 891646390\n"


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """One of each kind of thing that is no regular file."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    yield {name: tmp_path / name for name in ("folder", "fifo", "socket", "link", "device")}
    listener.close()


KINDS = {"folder": "a folder", "fifo": "a FIFO", "socket": "a socket", "link": "a FIFO", "device": "a device"}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(name: str, special: dict[str, Path]) -> None:
    for read in (open_regular, lambda path: read_bytes(path, most=100)):
        with pytest.raises(Unreadable, match=f"{name}: is {KINDS[name]}; allowed: a regular file"):
            read(special[name])
    assert not is_lfs_pointer(special[name])


def test_a_folder_with_a_fifo_somewhere_in_it_is_refused(special: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "sound" / "below").mkdir(parents=True)
    (tmp_path / "sound" / "below" / "file").write_text("x")
    (tmp_path / "sound" / "nowhere").symlink_to("nothing")
    check_folder(tmp_path / "sound")
    os.mkfifo(tmp_path / "sound" / "below" / "pipe")
    with pytest.raises(Unreadable, match="sound/below/pipe: is a FIFO"):
        check_folder(tmp_path / "sound")


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, most=100) == b"x" * 100
    with pytest.raises(Unreadable, match="is larger than"):
        read_bytes(path, most=99)
    with open(path, "wb") as huge:
        huge.truncate(2**40)  # no block of it is written
    with pytest.raises(Unreadable, match="is larger than 1 MiB"):
        read_bytes(path, most=2**20)


def test_a_pipe_that_its_user_names_is_read_up_to_its_bound(tmp_path: Path) -> None:
    """`emorl train <(make-recipe)` is a FIFO; /dev/zero has no end."""
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(b"a: 1"))
    writer.start()
    assert read_bytes(tmp_path / "fifo", most=100, regular=False) == b"a: 1"
    writer.join()
    with pytest.raises(Unreadable, match="is larger than"):
        read_bytes(Path("/dev/zero"), most=2**21, regular=False)
    with pytest.raises(Unreadable, match="cannot be read"):
        read_bytes(tmp_path, most=100, regular=False)


def test_what_is_not_there_is_missing_and_what_may_not_be_read_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path / "file" / "below"):
        with pytest.raises(Missing, match="no such file"):
            read_bytes(path, most=100)

    def refuse(path: Path, *_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)  # the suite may run as a user that may read everything
    with pytest.raises(Unreadable, match="file: cannot be read: Permission denied") as caught:
        read_bytes(tmp_path / "file", most=100)
    assert not isinstance(caught.value, Missing)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(Unreadable, match="Permission denied"):
        is_folder(tmp_path)


def test_is_folder_knows_every_name(tmp_path: Path) -> None:
    assert is_folder(tmp_path)
    for path in (tmp_path / "none", tmp_path / ("x" * 3000), Path("a\0b")):
        assert not is_folder(path)


@pytest.mark.parametrize("version", ["https://git-lfs.github.com/spec/v1", "https://hawser.github.com/spec/v1"])
def test_a_git_lfs_pointer_is_called_one(version: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(POINTER.replace(b"https://git-lfs.github.com/spec/v1", version.encode()))
    assert is_lfs_pointer(path)
    with pytest.raises(Unreadable, match="is a Git LFS pointer, not the file itself; fetch the file with"):
        read_bytes(path, most=10**6)
    path.write_bytes(POINTER + b"x" * 1024)
    assert not is_lfs_pointer(path), "a pointer is shorter"
    assert not is_lfs_pointer(tmp_path / "none")


def test_a_folder_hash_changes_with_names_and_contents(tmp_path: Path) -> None:
    def made(name: str, text: str) -> str:
        folder = tmp_path / f"{name}-{text}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        return folder_hash(folder)

    assert made("a", "1") == made("a", "1")
    assert len({made("a", "1"), made("a", "2"), made("b", "1")}) == 3


def test_the_hash_of_a_folder_is_what_older_receipts_have(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("2")
    (tmp_path / "a").write_text("1")
    assert folder_hash(tmp_path) == "52a8cb80c50c6cd385a3c927272574ffbaecc003143f2495d5c97fc6284e728d"


def test_the_hash_of_weights_does_not_see_what_lies_beside_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(name)
    (tmp_path / "one" / "model.safetensors").write_text("1")
    (tmp_path / "two" / "weights.safetensors").write_text("1")
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "two")
    (tmp_path / "two" / "weights.safetensors").write_text("2")
    assert weights_hash(tmp_path / "one") != weights_hash(tmp_path / "two")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(before := "whole")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of")
            assert path.read_text() == before
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["file.yaml"]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_follows_the_umask_whoever_wrote_it(umask: int, tmp_path: Path) -> None:
    """safetensors writes 0600."""
    with appearing(tmp_path / "folder") as folder:
        (folder / "below").mkdir()
        save_file({"x": torch.ones(2)}, folder / "below" / "x.safetensors")
        (folder / "y").write_text("y")
    with replacing(tmp_path / "file") as temporary:
        save_file({"x": torch.ones(2)}, temporary)
    save_file({"x": torch.ones(2)}, tmp_path / "own")
    follow_umask(tmp_path / "own")
    for path in (tmp_path / "folder/below/x.safetensors", tmp_path / "folder/y", tmp_path / "file", tmp_path / "own"):
        assert mode(path) == 0o666 & ~umask, path
    assert mode(tmp_path / "folder/below") == 0o777 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "own"], "no probe is left"
