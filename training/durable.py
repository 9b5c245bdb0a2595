"""Folders that appear whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
