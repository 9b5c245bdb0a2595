"""Bounded reading of files on disk.

A bundle may be untrusted, so its files must be regular files of bounded size: a FIFO or a device would hang the reader,
and gigabytes of YAML would fill its memory.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from emorl_core.errors import EmorlError

_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")  # its old name too
LFS_ADVICE = "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
_LFS_MOST = 1024  # bytes; Git LFS's specification: a pointer is smaller
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(EmorlError):
    """A file, or a text from one, that cannot be used. `reason` is the message without the file's path."""

    code = "unreadable"

    def __init__(self, reason: str, *, path: object = None, param: str | None = None) -> None:
        super().__init__(reason if path is None else f"{path}: {reason}", param=param)
        self.reason = reason


class Missing(Unreadable):
    """The file does not exist."""

    code = "missing"


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, through symbolic links. Raises `Unreadable`, `Missing`."""
    try:
        check_regular(path.stat().st_mode, path)  # before opening: opening a device may already have effects
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            check_regular(os.fstat(descriptor).st_mode, path)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise _unreadable(error, path) from None


def check_regular(mode: int, path: Path) -> None:
    """`mode` as `stat` gives it. Raises `Unreadable` for a folder, a FIFO, a socket or a device, by that name."""
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise Unreadable(f"is {kind}; allowed: a regular file", path=path)


def read_bytes(path: Path, *, most: int = sys.maxsize, regular: bool = True) -> bytes:
    """The whole content of a file of up to `most` bytes.

    Args:
        regular: refuse anything but a regular file. A file that its user names may be a pipe (`<(command)`).

    Raises:
        Unreadable: it is larger, a Git LFS pointer, not a regular file, or may not be read. `Missing`: not there.
    """
    try:
        with open_regular(path) if regular else open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > most else file.read(size) if regular else _read_up_to(file, most + 1)
    except OSError as error:
        raise _unreadable(error, path) from None
    if max(size, len(data)) > most:
        raise Unreadable(f"is larger than {_size(most)}, the most that is read of such a file", path=path)
    if _is_pointer(data):
        raise Unreadable(LFS_ADVICE, path=path)
    return data


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of a large file that was not fetched. Never fails."""
    try:
        with open_regular(path) as file:
            return _is_pointer(file.read(_LFS_MOST))
    except (Unreadable, OSError):
        return False


def is_folder(path: Path) -> bool:
    """Whether this is a folder; unlike `Path.is_dir` it raises a one-line error where permission is denied."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except PermissionError as error:
        raise _unreadable(error, path) from None
    except (OSError, ValueError):  # not there, too long a name, a NUL in it
        return False


def check_folder(folder: Path) -> None:
    """Raises `Unreadable` for anything below a folder that is neither a file nor a folder, and for a folder that cannot
    be listed."""
    for path in files_below(folder):
        check_regular(path.stat().st_mode, path)


def files_below(folder: Path) -> Iterator[Path]:
    """Everything below a folder except folders and dangling links. Raises `Unreadable` for a folder that cannot be
    listed."""
    try:
        for name, _, names in os.walk(folder, onerror=_raise):
            yield from (path for path in (Path(name) / each for each in names) if path.exists())
    except OSError as error:
        raise _unreadable(error, Path(error.filename)) from None


def _raise(error: OSError) -> None:
    raise error


def _read_up_to(file: BinaryIO, most: int) -> bytes:
    """Read up to `most` bytes in blocks. A pipe has no size, and `read(most)` would allocate that much memory first."""
    data = bytearray()
    while len(data) < most and (more := file.read(min(2**20, most - len(data)))):
        data += more
    return bytes(data)


def _is_pointer(data: bytes) -> bool:
    return len(data) < _LFS_MOST and data.startswith(_LFS)


def _unreadable(error: OSError, path: Path) -> Unreadable:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Missing("no such file", path=path)
    return Unreadable(f"cannot be read: {error.strerror or error}", path=path)


def _size(count: int) -> str:
    return f"{count / 2**30:g} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"
