"""Reads the word lists in this folder, which are YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emorl_core.files.documents import read_yaml

FOLDER = Path(__file__).parent


def table(name: str) -> Any:
    """The contents of `<name>.yaml`."""
    return read_yaml(FOLDER / f"{name}.yaml")


def words(text: str) -> tuple[str, ...]:
    """Split at commas."""
    return tuple(part.strip() for part in text.split(","))
