"""Diversity-2: distinct bigrams of a reply divided by its words (Li et al. 2016, as used in method.md section 1)."""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

from typing import Any, Literal

from emorl_core.scorers.base import Context, Scorer, ScorerConfig
from emorl_core.scorers.words import ngrams, words


class DiversityConfig(ScorerConfig):
    """Per reply. A reply of n different words gets (n - 1) / n, so 1 is never reached; one word or none gets 0."""

    kind: Literal["diversity"] = "diversity"

    def build(self, context: Context) -> Scorer:
        return Diversity()


class Diversity:
    __name__ = "diversity"

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [distinct_bigrams(text) for text in completions]


def distinct_bigrams(text: str) -> float:
    """Distinct bigrams / words; 0 for an empty text."""
    tokens = words(text)
    return len(set(ngrams(tokens, 2))) / len(tokens) if tokens else 0.0
