"""A word trigram model with Witten-Bell smoothing, mixed with a cache model of the client's words. It measures whether
a reply reads like the corpus, addressed to this client. Witten & Bell 1991, with the recursion of Chen & Goodman 1998,
equation 16; the cache model over the prompt follows Kuhn & De Mori 1990."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.,!?;:]")
START, END = "<s>", "</s>"
ORDER = 3
COPIED = 0.3  # share of the probability that belongs to the prompt's words; without it, avoiding them would be rewarded


def pieces(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return [piece.replace("’", "'") for piece in _TOKEN.findall(text.lower())]


class NgramModel:
    """P(w | h) = (c(h, w) + t(h) · P(w | shorter h)) / (c(h) + t(h)), where t(h) is the number of distinct words after
    h. The recursion ends in the uniform distribution over the vocabulary and one unknown word."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._after: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text in texts:
            padded = [START] * (ORDER - 1) + pieces(text) + [END]
            for place in range(ORDER - 1, len(padded)):
                for length in range(ORDER):
                    self._after[tuple(padded[place - length : place])][padded[place]] += 1
        self._totals = {history: counts.total() for history, counts in self._after.items()}
        self.vocabulary = len(self._after[()])

    def probability(self, word: str, history: tuple[str, ...]) -> float:
        """`history`: the preceding words, of which at most two are used."""
        history = history[max(0, len(history) - (ORDER - 1)) :]
        shorter = self.probability(word, history[1:]) if history else 1.0 / (self.vocabulary + 1)
        counts = self._after.get(history)
        if not counts:
            return shorter
        kinds = len(counts)
        return (counts[word] + kinds * shorter) / (self._totals[history] + kinds)

    def mean_log_probability(self, text: str, prompt: list[str]) -> float:
        """Natural log per token, including the end of text. `prompt`: the client's pieces, rewritten in the second
        person."""
        following: dict[str, Counter[str]] = defaultdict(Counter)
        for before, word in pairwise(prompt):
            following[before][word] += 1
        anywhere = Counter(prompt)
        padded = [START] * (ORDER - 1) + pieces(text) + [END]
        logs: list[float] = []
        for place in range(ORDER - 1, len(padded)):
            word, before = padded[place], padded[place - 1]
            likely = self.probability(word, tuple(padded[place - ORDER + 1 : place]))
            if prompt:
                expected = following.get(before, anywhere)
                likely = (1 - COPIED) * likely + COPIED * expected[word] / expected.total()
            logs.append(math.log(likely))
        return math.fsum(logs) / len(logs)
