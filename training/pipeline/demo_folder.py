"""The folder of a demo bundle: a receipt names what was made, one process at a time makes it, and nothing else that
lies there is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emorl_core.bundles.bundle import BUNDLE_FILE
from emorl_core.errors import EmorlError

RECEIPT = "demo.json"


class DemoError(EmorlError):
    """A demo that cannot be made, or not where it was asked for."""

    code = "invalid_demo"


def key_of(folder: Path) -> str | None:
    """The key that a finished demo bundle was made with; None where there is none."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(receipt.get("key")) if (folder / BUNDLE_FILE).is_file() and isinstance(receipt, dict) else None


def write_receipt(folder: Path, key: str, adapters: str) -> None:
    """adapters: where they come from, for people."""
    receipt = {"key": key, "adapters": adapters}
    (folder / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")


def check_target(folder: Path) -> None:
    """Raises `DemoError` where `folder` holds something that is not a demo bundle."""
    if folder.is_dir() and (key_of(folder) is not None or not any(folder.iterdir())):
        return
    if folder.exists():
        raise DemoError(f"folder is {folder.name!r}, which holds something else; name a new folder", param="folder")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One build of a folder at a time; a second process waits, and then finds it built."""
    from filelock import FileLock  # comes with huggingface_hub

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield
