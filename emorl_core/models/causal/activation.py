"""Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397): an adapter that acts from its invocation tokens on.

Before them a prompt's keys and values are the base's, so lanes share them. PEFT's rule, which this is: the last
occurrence in the prompt counts, the invocation tokens themselves are adapted, and a prompt without them is the base's,
reply included. What the reply says changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


def activation_start(prompt: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last occurrence of `invocation` in the prompt begins; None when there is none."""
    size = len(invocation)
    wanted = tuple(invocation)
    for start in range(len(prompt) - size, -1, -1):
        if tuple(prompt[start : start + size]) == wanted:
            return start
    return None
