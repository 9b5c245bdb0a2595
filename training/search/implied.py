"""Texts that follow from known ones without being generated.

For a given prefix a lane's logits are fixed and the mix is linear in the weights, so "this token is the largest" is a
half-space for every other token: the weight vectors that give one greedy text form a convex cone. When two vectors give
the same tokens, so does every vector between them. (Greedy decoding of mixed hidden states, weights from 0.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.search.spaces import Point

# Two directions are opposite when their cosine is this near to -1: 5e-7 rad, far below the distance of grid points.
_OPPOSITE = 1e-13


class Known:
    """The directions that were generated, and which tokens each prompt had under them."""

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._directions: list[np.ndarray] = []
        self._tokens: list[list[str]] = []  # names of token sequences, per direction and prompt

    def add(self, point: Point, tokens: Sequence[str]) -> None:
        """point: not the zero vector; tokens: one name of a token sequence per prompt."""
        self._directions.append(_direction(point))
        self._tokens.append(list(tokens))

    def implied(self, point: Point) -> list[str | None]:
        """Per prompt the name of the tokens that `point` must give, or None where that is not known."""
        found: list[str | None] = [None] * self._prompts
        for i, j in self._around(_direction(point)):
            for prompt, (a, b) in enumerate(zip(self._tokens[i], self._tokens[j], strict=True)):
                if a == b:
                    found[prompt] = a
        return found

    def _around(self, here: np.ndarray) -> list[tuple[int, int]]:
        """Pairs of known directions with `here` on the line between them."""
        if not self._directions:
            return []
        away = np.stack(self._directions) - here  # [K, N]
        distance = np.linalg.norm(away, axis=1)
        distance[distance == 0.0] = np.inf  # `here` itself
        away = away / distance[:, None]
        first, second = np.nonzero(np.triu(away @ away.T < -1 + _OPPOSITE))
        return list(zip(first.tolist(), second.tolist(), strict=True))


def _direction(point: Point) -> np.ndarray:
    vector = np.asarray(point, dtype=np.float64)
    return vector / vector.sum()
