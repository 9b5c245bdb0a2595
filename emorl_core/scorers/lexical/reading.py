"""A text's features for the lexical scorers: words, content, feelings, and whether it has the form of a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from emorl_core.scorers.base import clip
from emorl_core.scorers.guards import distinct_share, length_window
from emorl_core.scorers.lexical import lexicon
from emorl_core.scorers.lexical.lexicon import (
    AFTER_FEEL,
    AMBIGUOUS,
    FAMILY_OF,
    FEEL,
    FEELING_VERBS,
    FIRST_PERSON,
    FRAME,
    FUNCTION,
    INTENSIFIERS,
    NEGATIONS,
    QUESTION_START,
    stem,
)
from emorl_core.scorers.words import words

FEWEST_WORDS, MOST_WORDS = 5, 40  # words of a reply of normal length
_SAID_TO_CLIENT = re.compile(
    r"\bi(?: can)? (?:hear|see|understand|sense|imagine|hope|wish)\b"
    r"|\b(?:i'm|i am) (?:so |really |very )?(?:sorry|glad|here)\b"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The features of a text."""

    raw: str
    text: str  # lower-case, straight quotes, two-word feelings joined
    tokens: list[str]
    content: list[str]  # stems of content words; for a feeling word, its family
    feelings: list[str]  # families in order, without negated ones

    @property
    def function_share(self) -> float:
        return sum(token in FUNCTION or token in FRAME for token in self.tokens) / max(1, len(self.tokens))


def read(text: str) -> Reading:
    """Extract a text's features. Quote style and case make no difference."""
    plain = lexicon.join_phrases(" ".join(text.replace("’", "'").replace("‘", "'").lower().split()))
    tokens = words(plain)
    families = [_family(tokens, index) for index in range(len(tokens))]
    content = [
        f"feeling:{family}" if family else stem(token)
        for token, family in zip(tokens, families, strict=True)
        if family or (token not in FUNCTION and token not in FRAME)
    ]
    felt = [
        family
        for index, family in enumerate(families)
        if family and not NEGATIONS & set(tokens[max(0, index - 3) : index])
    ]
    return Reading(text, plain, tokens, content, felt)


def sentence_form(text: str) -> float:
    """1 if all sentences start with a capital and the text ends with a punctuation mark; a factor of 0.6 for each that
    fails; reduced by the share of unusual characters."""
    stripped = text.strip()
    if not stripped:
        return 0.0
    starts = [part for part in re.split(r"(?<=[.!?])\s+", stripped) if part]
    capitals = sum(part[0].isupper() or not part[0].isalpha() for part in starts) / len(starts)
    plain = sum(character.isalnum() or character in " .,!?;:'’\"-()" for character in stripped) / len(stripped)
    return (0.6 + 0.4 * capitals) * (1.0 if stripped[-1] in ".!?" else 0.6) * plain**2


def _family(tokens: list[str], index: int) -> str | None:
    family = FAMILY_OF.get(tokens[index])
    if family and tokens[index] in AMBIGUOUS and not FEELING_VERBS & set(tokens[max(0, index - 3) : index]):
        return None
    return family


def has_own_voice(reply: Reading) -> bool:
    """Whether the first person occurs other than in "I hear that" and "I'm sorry", which address the client."""
    return bool(FIRST_PERSON & set(words(_SAID_TO_CLIENT.sub(" ", reply.text))))


def form_factor(reply: Reading, client: Reading) -> float:
    """1 for connected text of a sensible length; less for word lists, repetition, and too few or too many words."""
    factor = length_window(len(reply.tokens), FEWEST_WORDS, MOST_WORDS)
    factor *= distinct_share(reply.tokens, 2) ** 3
    factor *= 0.5 if distinct_share(reply.tokens, 3) < 1.0 else 1.0  # a repeated trigram
    factor *= 0.4 if misnames_feeling(reply, client) else 1.0
    return factor * function_factor(reply) * _joint_factor(reply.tokens, client.tokens) * sentence_form(reply.raw)


def misnames_feeling(reply: Reading, client: Reading) -> bool:
    """Whether "feel" is followed by something that is not a feeling ("anyone would feel money"), or by nothing. The
    client's words for their own state ("I'm so foggy") are allowed even if they are not in the list of feelings."""
    own = {
        token
        for index, token in enumerate(client.tokens)
        if FEELING_VERBS & set(client.tokens[max(0, index - 3) : index])
    }
    for index, token in enumerate(reply.tokens):
        if token in FEEL:
            rest = [word for word in reply.tokens[index + 1 : index + 4] if word not in INTENSIFIERS]
            if not rest or not (rest[0] in FAMILY_OF or rest[0] in own - FUNCTION or rest[0] in AFTER_FEEL):
                return True
    return False


def function_factor(reply: Reading) -> float:
    """English prose has about 40 % to 80 % function and frame words; below 35 % it is a list, above 90 % empty."""
    share = reply.function_share
    return min(1.0, share / 0.35, max(0.3, (1 - share) / 0.1))


def _joint_factor(tokens: list[str], known: list[str]) -> float:
    """1 for connected text, towards 0 for keyword lists. Up to a quarter of adjacent pairs may be two content words
    that were not adjacent in the client's text, as in English prose; keyword lists consist of such pairs."""
    said = set(pairwise(known))
    pairs = list(pairwise(tokens))
    if not pairs:
        return 1.0
    loose = sum(
        pair not in said and all(token not in FUNCTION and token not in FRAME for token in pair) for pair in pairs
    )
    return clip(1 - 2 * (loose / len(pairs) - 0.25))


def asks(reply: Reading) -> bool:
    """Whether it is a question, with or without a question mark; "When she left, you ..." is not."""
    return "?" in reply.text or bool(reply.tokens and reply.tokens[0] in QUESTION_START and "," not in reply.text)
