"""A scorer of your own: a function, and nothing else.

python examples/own_scorer.py     # what it says about three replies

In a recipe: {kind: callable, path: "examples.own_scorer:no_advice"}; see docs/guides/own-scorer.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

ADVICE = ("you should", "you could", "why don't you", "have you tried", "try to", "you need to")


def no_advice(
    prompts: list[str], completions: list[str], phrases: Sequence[str] = ADVICE, **columns: Any
) -> list[float]:
    """1 for a reply without advice, 1/2 with one phrase of it, 1/3 with two; 0 for a reply with fewer than four words,
    or saying nothing would be the best of all."""
    scores = []
    for text in completions:
        said = " ".join(re.findall(r"[\w']+", text.lower()))
        found = sum(said.count(phrase) for phrase in phrases)
        scores.append(1.0 / (1 + found) if len(said.split()) >= 4 else 0.0)
    return scores


if __name__ == "__main__":
    from emorl_core.scorers import build_scorer

    replies = ["You feel that work asks too much of you.", "You should take a week off. Have you tried yoga?", ""]
    # Built as a recipe builds it: the answer is checked for its length, type and range at every call.
    scorer = build_scorer({"kind": "callable", "path": "examples.own_scorer:no_advice"})
    for reply, score in zip(replies, scorer(prompts=["I cannot keep up."] * 3, completions=replies), strict=True):
        print(f"{score:.2f}  {reply or '(nothing)'}")
