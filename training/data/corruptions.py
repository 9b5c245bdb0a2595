"""Rules that corrupt a good reply, so that any scorer should prefer the original.

The exam uses them, and training uses them as hard negatives. A rule returns None if it finds nothing to change.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from training.data.phrases import ADVICE, BLAME, FLATTERY, Phrases
from training.data.roles import agent_and_object, you_and_i
from training.data.synthetic.person import to_second_person

Rule = Callable[[str, str, random.Random, bool], str | None]  # (prompt, reply, draw, held_out)

_SENTENCE = re.compile(r"[^.!?]+[.!?]*\s*")
_FEWEST = 4  # minimum of words to truncate, repeat or shuffle
# Verbs that can be negated with "do not"; after "you", other words are as often adverbs as verbs.
_VERBS = (
    "feel|want|need|know|think|like|love|believe|see|have|wish|hope|worry|care|struggle|find|enjoy|understand|trust|"
    "realize|realise|miss|hate|fear|expect|deserve|seem|sound|look|get|wonder|value|prefer|enjoy|remember|plan"
)
_TO_POSITIVE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\b(?:do|does|did)(?:n't| not) (?=\w)", ""),
        (r"\bcan(?:'t|not| not)\b", "can"),
        (r"\bwon't\b", "will"),
        (r"\b(is|are|was|were|have|has|had|could|would|should)(?:n't| not)\b", r"\1"),
        (r"(?<=\w)('re|'m|'s|'ve) not\b", r"\1"),
        (r"\bnever\b", "always"),
        (r"\bno longer\b", "still"),
        (r"\bunable to\b", "able to"),
        (r"\bunsure\b", "sure"),
    )
)
_TO_NEGATIVE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\b(you)('re| are)\b(?! not)", r"\1\2 not"),
        (rf"\b(you|they|we|I) ({_VERBS})\b", r"\1 don't \2"),
        (r"\b(it|he|she|that|this)('s| is)\b(?! not)", r"\1\2 not"),
        (r"\b(you)('ve| have) (?=been\b|had\b|tried\b|done\b)", r"\1\2 not "),
        (r"\b(can|could|will|would|was|were)\b(?! not)(?!n't)", r"\1 not"),
        (r"\b(it|that|this) makes\b", r"\1 does not make"),
        (r"\b(it|that|this) (sound|seem|feel|look)s\b", r"\1 doesn't \2"),
    )
)


def negated(_prompt: str, reply: str, draw: random.Random, _held_out: bool) -> str | None:
    """One statement turned into its opposite, preferably by removing a negation."""
    text = reply.replace("’", "'")
    for rules in (_TO_POSITIVE, _TO_NEGATIVE):
        sites = [(match, replacement) for pattern, replacement in rules for match in pattern.finditer(text)]
        if sites:
            match, replacement = draw.choice(sites)
            return text[: match.start()] + match.expand(replacement) + text[match.end() :]
    return None


def cut_in_half(_prompt: str, reply: str, draw: random.Random, held_out: bool) -> str | None:
    """The first half of the words; in training, a third to three quarters."""
    words = reply.split()
    share = 0.5 if held_out else draw.uniform(0.33, 0.75)
    kept = " ".join(words[: max(2, int(len(words) * share))]).rstrip(".,;:!? ")
    return kept if len(words) >= _FEWEST and len(kept.split()) < len(words) else None


def repeated(_prompt: str, reply: str, draw: random.Random, held_out: bool) -> str | None:
    """The whole reply twice; in training also one sentence twice, or a stuttered sequence of words."""
    words = reply.split()
    if len(words) < _FEWEST:
        return None
    way = 0 if held_out else draw.randrange(3)
    if way == 0:
        return f"{reply} {reply}"
    if way == 1:
        sentence = draw.choice(_SENTENCE.findall(reply) or [reply]).strip()
        return f"{reply} {sentence}"
    size = draw.randint(2, 4)
    start = draw.randrange(max(1, len(words) - size))
    run = words[start : start + size]
    return " ".join([*words[: start + size], *run * draw.randint(1, 2), *words[start + size :]])


def copied(prompt: str, reply: str, draw: random.Random, held_out: bool) -> str | None:
    """The client's own words; in training also some of their sentences, or all of them with the person changed."""
    text = prompt
    if not held_out:
        way, sentences = draw.randrange(4), _SENTENCE.findall(prompt)
        if way == 1 and len(sentences) > 1:
            start = draw.randrange(len(sentences))
            text = "".join(sentences[start : start + 2]).strip()
        elif way == 2:
            text = to_second_person(prompt)
    return text if text and text != reply else None


def shuffled(_prompt: str, reply: str, draw: random.Random, _held_out: bool) -> str | None:
    """The same words in another order."""
    words = reply.split()
    if len(set(words)) < _FEWEST:
        return None
    mixed = list(words)
    while mixed == words:
        draw.shuffle(mixed)
    return " ".join(mixed)


def _adding(phrases: Phrases, *, before: bool) -> Rule:
    """A rule that adds one of `phrases` after the reply or, with `before`, in front of it."""

    def added(_prompt: str, reply: str, draw: random.Random, held_out: bool) -> str | None:
        phrase = draw.choice(phrases.of(held_out=held_out))
        ended = reply if reply.rstrip().endswith((".", "!", "?")) else f"{reply.rstrip()}."
        return f"{phrase} {reply}" if before and draw.random() < 0.5 else f"{ended} {phrase}"

    return added


def _without_draw(rule: Callable[[str], str | None]) -> Rule:
    return lambda _prompt, reply, _draw, _held_out: rule(reply)


# In the order of the exam's table.
CORRUPTIONS: dict[str, Rule] = {
    "you and I swapped": _without_draw(you_and_i),
    "agent and object swapped": _without_draw(agent_and_object),
    "negated": negated,
    "with blame": _adding(BLAME, before=True),
    "cut in half": cut_in_half,
    "repeated": repeated,
    "copied prompt": copied,
    "advice appended": _adding(ADVICE, before=False),
    "flattery": _adding(FLATTERY, before=True),
    "words shuffled": shuffled,
}


def corrupt(name: str, prompt: str, reply: str, draw: random.Random, *, held_out: bool = False) -> str | None:
    """The reply corrupted by the rule `name`, or None if the rule finds nothing to change. held_out: use phrases and
    forms that are reserved for the exam."""
    made = CORRUPTIONS[name](prompt, reply, draw, held_out)
    return made if made is not None and made != reply else None
