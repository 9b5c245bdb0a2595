"""Where the real counselling data lies, for tests that try the loaders on it. No test needs it: they skip without."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(name: str) -> Path:
    """The file, or a skip that says what is missing."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no real data at ../shared/data/{name}")
    return path
