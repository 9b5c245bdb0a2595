"""Scorers as a user would write them, reached by dotted path."""

from __future__ import annotations

from typing import Any

NOT_A_FUNCTION = 3


class AClass:
    pass


def share_of_letters(prompts: list[str], completions: list[str], letter: str = "a", **kwargs: Any) -> list[float]:
    return [text.count(letter) / max(1, len(text)) for text in completions]


def only_texts(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(prompt == completion) for prompt, completion in zip(prompts, completions, strict=True)]


def without_prompts(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)
