"""Swaps the roles in a reply: "you" and "I", or "you" and another person.

Rules over English words; their output is mostly grammatical, so that a scorer cannot recognise it by its form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")

_SWAPPED = {
    "you're": "I'm", "you've": "I've", "you'd": "I'd", "you'll": "I'll", "your": "my", "yours": "mine",
    "yourself": "myself", "i": "you", "me": "you", "i'm": "you're", "i've": "you've", "i'd": "you'd",
    "i'll": "you'll", "my": "your", "mine": "yours", "myself": "yourself",
}  # fmt: skip
_AFTER_YOU = {"are": "am", "aren't": "am not", "were": "was", "weren't": "wasn't"}
_AFTER_I = {"am": "are", "was": "were", "wasn't": "weren't"}
_YOU = ("you", "you're", "you've", "you'd", "you'll")
# A person after one of these words is an object.
_OBJECT_AFTER = frozenset(
    "to for with about at from on by of than without against between behind toward towards make makes made making let "
    "lets help helps helped helping support supports supporting hurt hurts love loves tell tells told give gives gave "
    "see sees treat treats treated ask asks asked want wants need needs leave left understand understands hear hears "
    "believe believes scare scares scared bother bothers upset upsets worry worries push pushes keep keeps put puts "
    "call calls called blame blames judge judges respect respects ignore ignores trust trusts stop stops".split()
)
_PEOPLE = frozenset(
    "mother mom mum father dad parents wife husband partner boyfriend girlfriend boss manager friend friends kids "
    "children child son daughter sister brother family doctor doctors teacher therapist colleagues coworkers people "
    "roommate ex baby spouse parent others".split()
)
_MANY = frozenset("parents friends kids children doctors colleagues coworkers people others they them".split())
_DETERMINERS = frozenset("your the his her their my our a an other some".split())
_SUBJECTS, _OBJECTS = {"he": "him", "she": "her", "they": "them"}, {"him": "he", "them": "they"}
_ADVERBS = frozenset("really just also still never always only even often probably truly already ever".split())
_SAME = frozenset(
    "can could will would should might may must did had to not felt went got said told made left came knew thought "
    "can't couldn't won't wouldn't shouldn't didn't hadn't mustn't".split()
)
_PLURAL = {
    "is": "are", "was": "were", "has": "have", "does": "do", "isn't": "aren't", "wasn't": "weren't",
    "hasn't": "haven't", "doesn't": "don't",
}  # fmt: skip
_SINGULAR = {many: one for one, many in _PLURAL.items()}
_CONTRACTED = {"": "", "re": " is", "ve": " has", "d": " would", "ll": " will"}


def you_and_i(reply: str) -> str | None:
    """ "You are worried about your son" -> "I am worried about my son"; None if neither occurs."""
    said = _Said(reply)
    changed: dict[int, tuple[int, str]] = {}
    for at, word in enumerate(said.lower):
        before = said.lower[at - 1] if at else ""
        if word == "you":
            changed[at] = (at + 1, "me" if said.is_object(at) else "I")
        elif word in _SWAPPED:
            changed[at] = (at + 1, _SWAPPED[word])
        elif before == "you" and word in _AFTER_YOU:
            changed[at] = (at + 1, _AFTER_YOU[word])
        elif before == "i" and word in _AFTER_I:
            changed[at] = (at + 1, _AFTER_I[word])
    return said.written(changed) if changed else None


def agent_and_object(reply: str) -> str | None:
    """ "Your boss shouts at you" -> "You shout at your boss"; None without "you" or without another person."""
    said = _Said(reply)
    other = said.somebody_else()
    you = next((at for at, word in enumerate(said.lower) if word in _YOU), None)
    if other is None or you is None:
        return None
    contracted = said.lower[you].partition("'")[2]
    you_acts = bool(contracted) or not said.is_object(you)
    told = other.told(subject=you_acts) + _CONTRACTED[contracted]
    if other.many:
        told = told.replace(" is", " are").replace(" has", " have")
    changed = {you: (you + 1, told), other.first: (other.last, "you")}
    if you_acts and not contracted and not other.many:
        said.agree(changed, you + 1, _to_singular)
    if other.subject and not other.many:
        said.agree(changed, other.last, _to_plural)
    return said.written(changed)


@dataclass(frozen=True, slots=True)
class _Person:
    """Words `first` to `last` (exclusive) of a reply; `text`: as written there."""

    first: int
    last: int
    text: str
    subject: bool

    @property
    def many(self) -> bool:
        return self.text.lower().split()[-1] in _MANY

    def told(self, *, subject: bool) -> str:
        lower = self.text[0].lower() + self.text[1:]
        if lower in _SUBJECTS:
            return lower if subject else _SUBJECTS[lower]
        if lower in _OBJECTS:
            return _OBJECTS[lower] if subject else lower
        return lower


class _Said:
    """A reply split into words."""

    def __init__(self, reply: str) -> None:
        self.text = reply.replace("’", "'")
        self.found = list(_WORD.finditer(self.text))
        self.lower = [match.group().lower() for match in self.found]

    def is_object(self, at: int) -> bool:
        """Whether the person that begins at word `at` is an object."""
        behind = self.text[self.found[at].end() :].lstrip(" ")[:1]
        return (at > 0 and self.lower[at - 1] in _OBJECT_AFTER) or behind in ("", ".", ",", ";", "!", "?")

    def somebody_else(self) -> _Person | None:
        for at, word in enumerate(self.lower):
            if word in _SUBJECTS or word in _OBJECTS:
                return _Person(at, at + 1, self.found[at].group(), word in _SUBJECTS)
            if word in _PEOPLE:
                first = at - 1 if at and self.lower[at - 1] in _DETERMINERS else at
                text = self.text[self.found[first].start() : self.found[at].end()]
                return _Person(first, at + 1, text, not (first > 0 and self.lower[first - 1] in _OBJECT_AFTER))
        return None

    def agree(self, changed: dict[int, tuple[int, str]], at: int, form: Callable[[str], str]) -> None:
        """Make the verb after a new subject agree with it."""
        while at < len(self.lower) and self.lower[at] in _ADVERBS:
            at += 1
        if at < len(self.lower) and at not in changed:
            changed[at] = (at + 1, form(self.lower[at]))

    def written(self, changed: dict[int, tuple[int, str]]) -> str:
        """The text with words replaced; changed: first word -> (end, exclusive; replacement)."""
        parts: list[str] = []
        end = 0
        for first in sorted(changed):
            last, new = changed[first]
            start = self.found[first].start()
            if not self.text[:start].rstrip(" \"'") or self.text[:start].rstrip(" \"'")[-1] in ".!?":
                new = new[0].upper() + new[1:]
            parts += (self.text[end:start], new)
            end = self.found[last - 1].end()
        return "".join(parts) + self.text[end:]


def _to_plural(verb: str) -> str:
    """ "shouts" -> "shout"."""
    if verb in _PLURAL:
        return _PLURAL[verb]
    if not verb.endswith("s") or verb.endswith("ss") or verb in _SAME:
        return verb
    if verb.endswith("ies"):
        return f"{verb[:-3]}y"
    return verb[:-2] if verb.endswith(("oes", "shes", "ches", "xes", "sses")) else verb[:-1]


def _to_singular(verb: str) -> str:
    """ "shout" -> "shouts"."""
    if verb in _SINGULAR:
        return _SINGULAR[verb]
    if verb in _SAME or verb.endswith("ed"):
        return verb
    if verb.endswith("y") and verb[-2:-1] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}es" if verb.endswith(("o", "sh", "ch", "x", "ss")) else f"{verb}s"
