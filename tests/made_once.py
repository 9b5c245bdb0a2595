"""Files that take a while to make and are always the same: made once in a process, copied from then on."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_KEPT = Path(tempfile.mkdtemp(prefix="emorl-tests-"))
atexit.register(shutil.rmtree, _KEPT, ignore_errors=True)


def made_once(key: object, folder: Path, make: Callable[[Path], object]) -> Path:
    """Write into `folder` what `make` writes, and return `folder`. key: all that this depends on; its `repr` counts."""
    kept = _KEPT / hashlib.sha256(repr(key).encode()).hexdigest()
    if not kept.exists():
        begun = kept.with_suffix(".begun")
        make(begun)
        begun.rename(kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return folder


def contents(folder: Path) -> str:
    """What the files of a folder hold, as a part of a key."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
