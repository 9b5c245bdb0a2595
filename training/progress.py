"""Types of the progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (stage, done, total)
FitProgress = Callable[[int, int, float], None]  # (steps done, steps in total, recent loss)
Say = Callable[[str], None]  # one line of text
