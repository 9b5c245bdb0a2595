"""Reading the word lists that lie beside this file as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emorl_core.files.documents import read_yaml

FOLDER = Path(__file__).parent


def table(name: str) -> Any:
    """What `<name>.yaml` holds."""
    return read_yaml(FOLDER / f"{name}.yaml")


def words(text: str) -> tuple[str, ...]:
    """Those between the commas."""
    return tuple(part.strip() for part in text.split(","))
