"""Files on disk: read within bounds, written whole or not at all, named by hashes.

A bundle may come from a stranger, so what is read as one of its files is a regular file of a bounded size: a FIFO or a
device would hang the reader, and gigabytes of YAML would fill its memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    """A file, or a text out of one, that cannot be taken. `reason` is the message without the file's path."""

    code = "unreadable"

    def __init__(self, reason: str, *, path: Path | None = None, param: str | None = None) -> None:
        super().__init__(reason if path is None else f"{path}: {reason}", param=param)
        self.reason = reason


class Missing(Unreadable):
    """The file does not exist."""

    code = "missing"


# --- reading ---------------------------------------------------------------------------------------------------------


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


def read_bytes(path: Path, *, most: int, regular: bool = True) -> bytes:
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
    """Whether there is a folder; unlike `Path.is_dir` one line, and no traceback, where it may not be looked at."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except PermissionError as error:
        raise _unreadable(error, path) from None
    except (OSError, ValueError):  # not there, too long a name, a NUL in it
        return False


def check_folder(folder: Path) -> None:
    """Raises `Unreadable` for anything below a folder that is neither file nor folder, and for one that is not open."""
    for path in files_below(folder):
        check_regular(path.stat().st_mode, path)


def files_below(folder: Path) -> Iterator[Path]:
    """Whatever is no folder, and no link that leads nowhere. Raises `Unreadable` for a folder that is not open."""
    try:
        for name, _, names in os.walk(folder, onerror=_raise):
            yield from (path for path in (Path(name) / each for each in names) if path.exists())
    except OSError as error:
        raise _unreadable(error, Path(error.filename)) from None


def _raise(error: OSError) -> None:
    raise error


def _read_up_to(file: BinaryIO, most: int) -> bytes:
    """Of a pipe, which tells no size; `read(most)` would set that much memory aside first."""
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


# --- hashes ----------------------------------------------------------------------------------------------------------


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files; names a base or an adapter in a receipt.

    Raises `Unreadable` for a file or folder that may not be read.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in files_below(folder) if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with open_regular(path) as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def weights_hash(folder: Path) -> str:
    """SHA-256 over the contents of a checkpoint's safetensors files: the same for a copy under another name, or with
    other files beside them. Raises `Unreadable`."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open_regular(path) as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write, fsync, rename: yields a temporary path beside `path` that takes its place when the block succeeds.

    A reader sees the old file or the new one, never half of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        follow_umask(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def appearing(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder beside `folder` that takes its name when the block succeeds.

    With `replace` an older folder of that name gives way: it is renamed out of the way first and deleted last, so a
    program killed in between leaves the old folder or the new one under its own or a temporary name, never a mixture.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        yield temporary
        follow_umask(temporary)
        _sync_tree(temporary)
        if replace and folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(parent: Path) -> None:
    """Remove the half-written folders that a killed program left in `parent`, whatever they were to become."""
    for half in parent.glob(".*.new"):
        shutil.rmtree(half, ignore_errors=True)


def follow_umask(written: Path) -> None:
    """Give a file, or every file below a folder, the mode that a plain `open` would have given it.

    safetensors and `tempfile` write for their own user alone; what this project writes is read by others: a server that
    runs as another user, a colleague.
    """
    is_file = written.is_file()
    mode = _plain_mode(written.parent if is_file else written)
    for path in [written] if is_file else written.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _plain_mode(folder: Path) -> int:
    """Of a new file in this folder, found by making one: the umask can be read only by changing it, for all threads."""
    probe = folder / f".{os.getpid()}.{threading.get_ident()}.mode"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


def _recover(folder: Path) -> None:
    """Clear up after a program that was killed in here: half-written folders go, an old one comes back."""
    for half in folder.parent.glob(f".{folder.name}.*.new"):
        shutil.rmtree(half, ignore_errors=True)
    for old in folder.parent.glob(f".{folder.name}.*.old"):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, folder)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
