"""One evaluation: what a point gave every prompt, by hashes of tokens and texts, and its scores. A line of the log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from training.search.strategies.grid import SearchError
from training.search.strategies.spaces import Point

_HASH = 16  # hexadecimal digits that name a text among those of one prompt


@dataclass(slots=True)
class Counts:
    """What a search did. Texts are counted once per prompt and key."""

    rays: int = 0  # distinct keys evaluated: directions, for an ensemble; the zero vector among them
    texts_generated: int = 0
    texts_implied: int = 0  # known from their neighbours
    texts_scored: int = 0  # distinct texts, once per prompt
    lane_row_steps: int = 0  # lane rows computed, one token each
    unshared_lane_row_steps: int = 0  # what one run per generated text would have computed

    def add(self, other: Counts) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One point. `tokens` and `texts` name what each prompt got; equal names, equal things."""

    point: Point
    tokens: tuple[str, ...]
    texts: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]  # [prompts][scorers]

    def of(self, prompts: slice) -> Evaluation:
        """The part that some prompts have in it."""
        return Evaluation(self.point, self.tokens[prompts], self.texts[prompts], self.scores[prompts])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Evaluation:
        """Of parts of one point, the first prompts first."""
        return Evaluation(
            parts[0].point,
            tuple(name for part in parts for name in part.tokens),
            tuple(name for part in parts for name in part.texts),
            tuple(own for part in parts for own in part.scores),
        )

    def as_line(self, names: Sequence[str]) -> dict[str, Any]:
        columns = list(zip(*self.scores, strict=True))
        return {
            "point": list(self.point),
            "means": {name: sum(column) / len(column) for name, column in zip(names, columns, strict=True)},
            "scores": {name: list(column) for name, column in zip(names, columns, strict=True)},
            "tokens": list(self.tokens),
            "texts": list(self.texts),
        }

    @classmethod
    def read(cls, line: Mapping[str, Any], names: Sequence[str]) -> Evaluation:
        """Raises `SearchError`: it is no evaluation by these scorers."""
        try:
            columns = [line["scores"][name] for name in names]
            return cls(
                tuple(map(float, line["point"])),
                tuple(line["tokens"]),
                tuple(line["texts"]),
                tuple(zip(*columns, strict=True)),
            )
        except (KeyError, TypeError, ValueError):
            raise SearchError("the log of the search is broken; --overwrite starts anew", param="resume") from None


def name_of(value: object) -> str:
    """Of a text, or of token ids."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_HASH]
