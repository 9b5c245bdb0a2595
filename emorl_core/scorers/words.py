"""The tokenisation into words that all scorers share."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "‑": "-"})


def words(text: str) -> list[str]:
    """Lower-case words; an apostrophe or hyphen inside a word is kept ("don't", "well-being")."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold())


def prompt_key(prompt: str) -> str:
    """A key that is equal for prompts with the same words, ignoring case, spacing, quotes and punctuation."""
    found = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).casefold())
    return " ".join(found) or prompt.strip()


def ngrams(tokens: list[str], size: int) -> list[tuple[str, ...]]:
    """All n-grams of `size` tokens, in order, repetitions included."""
    return list(zip(*(tokens[offset:] for offset in range(size)), strict=False))


def longest_run(left: list[str], right: list[str]) -> int:
    """Length of the longest sequence of consecutive words that both contain."""
    best = 0
    above = [0] * (len(right) + 1)
    for token in left:
        here = [0] * (len(right) + 1)
        for column, other in enumerate(right, start=1):
            if token == other:
                here[column] = above[column - 1] + 1
                best = max(best, here[column])
        above = here
    return best
