"""One evaluation of a point: for every prompt, hashes of tokens and text, and the scores. One line of the log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from training.search.strategies.grid import SearchError
from training.search.strategies.spaces import Point

_HASH = 16  # hexadecimal digits of a hash; unique among one prompt's texts


@dataclass(slots=True)
class Counts:
    """Counters of a search. Texts are counted once per prompt and key."""

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
    """One point. `tokens` and `texts` are hashes for each prompt."""

    point: Point
    tokens: tuple[str, ...]
    texts: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]  # [prompts][scorers]

    def of(self, prompts: slice) -> Evaluation:
        """The part for a slice of the prompts."""
        return Evaluation(self.point, self.tokens[prompts], self.texts[prompts], self.scores[prompts])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Evaluation:
        """Concatenate parts of one point, in the order of the prompts."""
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
        """Raises `SearchError` if the line is not an evaluation by these scorers."""
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
    """The hash of a text or of token ids."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_HASH]
