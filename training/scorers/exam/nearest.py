"""Finds prompts on the same topic, by the cosine similarity of tf-idf vectors (Salton 1975)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from emorl_core.scorers.words import words

_MOST_WORDS = 4000  # of the vocabulary


def nearest(prompts: Sequence[str], clusters: Sequence[str], *, count: int) -> list[list[int]]:
    """For each prompt, the indices of up to `count` prompts of other clusters, most similar first."""
    bags = [Counter(words(prompt)) for prompt in prompts]
    seen = Counter(word for bag in bags for word in bag)
    # A word that occurs in only one prompt says nothing about similarity.
    vocabulary = [word for word, often in seen.most_common(_MOST_WORDS) if often > 1]
    column = {word: at for at, word in enumerate(vocabulary)}
    table = np.zeros((len(prompts), max(1, len(vocabulary))), dtype=np.float32)  # [prompts, words]
    for row, bag in enumerate(bags):
        for word, often in bag.items():
            if word in column:
                table[row, column[word]] = (1 + np.log(often)) * np.log(1 + len(prompts) / seen[word])
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    owner = np.unique(np.array(clusters), return_inverse=True)[1]
    found: list[list[int]] = []
    for row in range(len(prompts)):
        alike = table @ table[row]  # [prompts]
        alike[owner == owner[row]] = -1
        order = np.argsort(-alike, kind="stable")[:count]
        found.append([int(at) for at in order if alike[at] >= 0])
    return found
