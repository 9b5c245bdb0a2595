"""Hashes of files on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from emorl_core.files.reading import files_below, open_regular


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files; it identifies a base or an adapter in a receipt.

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
