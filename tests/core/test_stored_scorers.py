"""Scorers of a bundle: stored with their files and hashes, checked and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emorl_core.bundle import BaseRef, Bundle, BundleSpec, ObjectiveSpec, read_spec, write_spec
from emorl_core.errors import BundleError
from emorl_core.scorers import build_scorer
from emorl_core.stored_scorers import learned, load_scorers, store_scorers
from tests.learn.scorer_models import MODEL_BUILDER

PROMPT, REPLY = "I feel tired of work", "You feel tired."


def bundle_with(folder: Path, scorers: dict[str, Any], files: dict[str, str]) -> Bundle:
    """Without a base: scorers alone are looked at."""
    spec = BundleSpec(
        name="tiny",
        base=BaseRef(path="base"),
        objectives={"reflection": ObjectiveSpec(adapter="adapters/reflection")},
        scorers=scorers,
        scorer_files=files,
    )
    write_spec(folder, spec)
    return Bundle.open(folder)
