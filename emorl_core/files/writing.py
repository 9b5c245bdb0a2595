"""Atomic writing of files."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

    With `replace` an existing folder of that name is renamed first and deleted last, so a program killed in between
    leaves the old folder or the new one under its own or a temporary name, never a mixture.
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
    """Remove all half-written folders that a killed program left in `parent`."""
    for half in parent.glob(".*.new"):
        shutil.rmtree(half, ignore_errors=True)


def follow_umask(written: Path) -> None:
    """Give a file, or every file below a folder, the mode that a plain `open` would have given it.

    safetensors and `tempfile` create files that only their owner can read. This project's files are read by others: a
    server that runs as another user, a colleague.
    """
    is_file = written.is_file()
    mode = _plain_mode(written.parent if is_file else written)
    for path in [written] if is_file else written.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _plain_mode(folder: Path) -> int:
    """The mode of a new file in this folder, found by creating one: reading the umask would change it for all
    threads."""
    probe = folder / f".{os.getpid()}.{threading.get_ident()}.mode"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


def _recover(folder: Path) -> None:
    """Clean up after a killed program: remove half-written folders, and restore the old one."""
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
