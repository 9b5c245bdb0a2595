"""Converts a client's words from first to second person ("I can't tell my wife" -> "you can't tell your wife").

Known limits: "you" (the counselor) is unchanged, and "we" becomes "you".
"""

from __future__ import annotations

import re

from training.data.synthetic.tables import table, words

_TABLE = table("person")
_SWAP, _PAST = _TABLE["swap"], _TABLE["past"]
_BETWEEN, _QUESTIONS = set(words(_TABLE["between"])), set(words(_TABLE["questions"]))
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")


def to_second_person(text: str) -> str:
    """Rewrite every first-person word of `text`; `was` changes only if "I" is its subject.

    A capital at the start of a sentence is kept ("My boss" -> "Your boss"); that of "I" within a sentence is not.
    """
    found = list(_WORD.finditer(text))
    parts: list[str] = []
    end = 0
    for index, match in enumerate(found):
        word = match.group()
        swapped = _swap(found, index)
        if swapped != word and word[0].isupper() and _starts_sentence(text, match.start()):
            swapped = swapped[0].upper() + swapped[1:]
        parts += (text[end : match.start()], swapped)
        end = match.end()
    return "".join(parts) + text[end:]


def _swap(words: list[re.Match[str]], index: int) -> str:
    word = words[index].group()
    lower = word.lower()
    if lower in _PAST:
        return _PAST[lower] if _subject_is_i(words, index) else word
    return _SWAP.get(lower, word)


def _subject_is_i(words: list[re.Match[str]], index: int) -> bool:
    if index + 1 < len(words) and words[index + 1].group() == "I" and _asks(words, index):
        return True
    back = index - 1
    while back >= 0 and words[back].group().lower() in _BETWEEN:
        back -= 1
    return back >= 0 and words[back].group() == "I"


def _asks(words: list[re.Match[str]], index: int) -> bool:
    """`was I` is inverted only after a question word ("Why was I late", not "as it was I left")."""
    return index == 0 or words[index - 1].group().lower() in _QUESTIONS


def _starts_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \"'")
    return not before or before[-1] in ".!?"
