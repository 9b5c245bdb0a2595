"""Every random draw of a run from its one seed, by name: a step's numbers do not depend on the steps before it."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A 62-bit seed from the run's seed and what it is for: `derive(0, "sample", step, prompt, objective, number)`."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 2
