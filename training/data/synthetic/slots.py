"""Templates with slots: `{partner}` is a word of that set, `{partner.she}` that person's pronoun."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from training.data.synthetic.words import PRONOUNS, SETS, gender_of

SLOT = re.compile(r"\{(\w+)(?:\.(she|her|him))?\}")
_TWINS = {"other": "name", "tool": "noun", "deed": "verb"}  # slot -> the slot that it must differ from


class Filler:
    """Fills templates from the word sets; a slot keeps its word for the lifetime of this object."""

    def __init__(self, rng: Random, sets: Mapping[str, Sequence[str]] = SETS) -> None:
        self.rng = rng
        self.bound: dict[str, str] = {}
        self._sets = sets
        self._genders: dict[str, str] = {}

    def fill(self, template: str) -> str:
        return SLOT.sub(self._value, template)

    def knows(self, template: str) -> bool:
        return all(match.group(1) in self.bound for match in SLOT.finditer(template))

    def _value(self, match: re.Match[str]) -> str:
        name, pronoun = match.groups()
        if name not in self.bound:
            elder = self.bound.get(_TWINS.get(name, ""))
            self.bound[name] = self.rng.choice(self._sets[name])
            while self.bound[name] == elder:
                self.bound[name] = self.rng.choice(self._sets[name])
        if pronoun is None:
            return self.bound[name]
        if name not in self._genders:
            self._genders[name] = gender_of(self.bound[name]) or self.rng.choice("fm")
        return PRONOUNS[self._genders[name]][("she", "her", "him").index(pronoun)]


def sentences(text: str) -> str:
    """Capitalise the start of every sentence."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)
