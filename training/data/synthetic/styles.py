"""The styles of replies in the synthetic corpus."""

from __future__ import annotations

from typing import Literal

Style = Literal["plain", "complex", "validation", "question", "advice", "brief"]
STYLES: tuple[Style, ...] = ("plain", "complex", "validation", "question", "advice", "brief")
