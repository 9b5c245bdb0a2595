"""Guards: scores that fall for very short, very long or repetitive text. Meant as a factor in a `product` with a real
scorer, not as an objective."""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from emorl_core.scorers.base import Context, Scorer, ScorerConfig
from emorl_core.scorers.words import ngrams, words


class LengthConfig(ScorerConfig):
    """1 between `min_words` and `max_words`; proportional to the length below, and falling to 0 at twice the limit
    above."""

    kind: Literal["length"] = "length"
    min_words: int = Field(4, ge=1)
    max_words: int = Field(60, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> LengthConfig:
        if self.min_words > self.max_words:
            raise ValueError("min_words is above max_words")
        return self

    def build(self, context: Context) -> Scorer:
        return Length(self)


class Length:
    __name__ = "length"

    def __init__(self, config: LengthConfig) -> None:
        self.config = config

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [length_window(len(words(text)), self.config.min_words, self.config.max_words) for text in completions]


class RepetitionConfig(ScorerConfig):
    """1 if no sequence of `ngram` words occurs twice; else the share of distinct ones, to the power of `strictness`. An
    empty text gets 0."""

    kind: Literal["repetition"] = "repetition"
    ngram: int = Field(3, ge=1, le=8)  # words per n-gram
    strictness: float = Field(2.0, gt=0, le=10)

    def build(self, context: Context) -> Scorer:
        return Repetition(self)


class Repetition:
    __name__ = "repetition"

    def __init__(self, config: RepetitionConfig) -> None:
        self.config = config

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [self._score(words(text)) for text in completions]

    def _score(self, tokens: list[str]) -> float:
        return distinct_share(tokens, self.config.ngram) ** self.config.strictness if tokens else 0.0


def length_window(count: int, low: int, high: int) -> float:
    """1 for low <= count <= high, count/low below, falling to 0 at 2·high above."""
    if count < low:
        return count / low
    return max(0.0, 1.0 - max(0, count - high) / high)


def distinct_share(tokens: list[str], size: int) -> float:
    """Distinct n-grams / all n-grams; 1 for a text that is too short to have one."""
    runs = ngrams(tokens, size)
    return len(set(runs)) / len(runs) if runs else 1.0
