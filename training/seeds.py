"""Named seeds derived from the run's seed, so that a step's random numbers do not depend on earlier steps."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """A 62-bit seed from the run's seed and what it is for: `derive(0, "sample", step, prompt, objective, number)`."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 2
