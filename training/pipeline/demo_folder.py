"""The folder of a demo bundle: a receipt identifies the build, one process at a time builds it, and folders with other
contents are never touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emorl_core.bundles.bundle import BUNDLE_FILE
from emorl_core.errors import EmorlError

RECEIPT = "demo.json"


class DemoError(EmorlError):
    """The demo cannot be built, or not in this folder."""

    code = "invalid_demo"


def key_of(folder: Path) -> str | None:
    """The build key of a finished demo bundle; None if there is none."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(receipt.get("key")) if (folder / BUNDLE_FILE).is_file() and isinstance(receipt, dict) else None


def write_receipt(folder: Path, key: str, adapters: str) -> None:
    """adapters: where they come from, in words."""
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
    """A lock on a folder: a second process waits, and then finds the bundle built."""
    from filelock import FileLock  # comes with huggingface_hub

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield
