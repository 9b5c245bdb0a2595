"""Selects texts to show side by side: good ones that differ from each other."""

from __future__ import annotations

from collections.abc import Sequence

from emorl_core.scorers.words import ngrams, words

Features = frozenset[tuple[str, ...]]


def features(text: str) -> Features:
    """Its words, and its pairs of neighbouring words."""
    found = words(text)
    return frozenset([*ngrams(found, 1), *ngrams(found, 2)])


def distance(first: Features, second: Features) -> float:
    """The Jaccard distance, 0 to 1: of all words and word pairs of both texts, the share that only one of them has. It
    is 0 for two texts without words."""
    every = len(first | second)
    return len(first ^ second) / every if every else 0.0


def pick(
    texts: Sequence[str], worth: Sequence[float | None], count: int, *, diversity: float, min_distance: float
) -> list[int]:
    """The indices of up to `count` texts by maximal marginal relevance (Carbonell & Goldstein 1998). The text of the
    highest worth comes first; then always the one with the largest (1 - diversity) worth + diversity distance, the
    distance being that to the nearest text selected so far.

    Args:
        worth: 0 to 1; None: unknown, such texts come after all others.
        diversity: 0 to 1.
        min_distance: texts nearer than this to a selected one are near-duplicates and left out.
    """
    known = [features(text) for text in texts]
    nearest = [1.0] * len(texts)  # the distance to the nearest selected text
    left = set(range(len(texts)))
    taken: list[int] = []

    def gain(i: int) -> tuple[bool, float, int]:
        value = worth[i] or 0.0
        if taken:
            value = (1.0 - diversity) * value + diversity * nearest[i]
        return worth[i] is not None, value, -i

    while left and len(taken) < count:
        best = max(left, key=gain)
        taken.append(best)
        left.discard(best)
        for i in tuple(left):
            nearest[i] = min(nearest[i], distance(known[i], known[best]))
            if nearest[i] < min_distance:
                left.discard(i)
    return sorted(taken, key=lambda i: (worth[i] is None, -(worth[i] or 0.0), i))
