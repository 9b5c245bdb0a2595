"""How long work tells what it is doing: callbacks of whoever started it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (stage, done, total)
FitProgress = Callable[[int, int, float], None]  # (steps done, steps in all, loss of the last ones)
Say = Callable[[str], None]  # one line for people
