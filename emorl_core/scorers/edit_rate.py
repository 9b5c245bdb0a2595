"""Edit rate: word-level Levenshtein distance between prompt and reply, divided by the longer length. 0 is a copy."""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from emorl_core.scorers.base import Context, Scorer, ScorerConfig
from emorl_core.scorers.words import words


class EditRateConfig(ScorerConfig):
    """Higher is further from the prompt; a metric, and a weak guard against copying."""

    kind: Literal["edit_rate"] = "edit_rate"

    def build(self, context: Context) -> Scorer:
        return EditRate()


class EditRate:
    __name__ = "edit_rate"

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [edit_rate(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def edit_rate(first: str, second: str) -> float:
    """Edit rate in [0, 1]; 0 for two texts without words."""
    left, right = words(first), words(second)
    longer = max(len(left), len(right))
    return levenshtein(left, right) / longer if longer else 0.0


def levenshtein(left: Sequence[str], right: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions of items (Wagner & Fischer 1974)."""
    above = list(range(len(right) + 1))
    for row, item in enumerate(left, start=1):
        here = [row]
        for column, other in enumerate(right, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (item != other)))
        above = here
    return above[-1]
