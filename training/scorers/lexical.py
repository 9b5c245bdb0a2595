"""The demo's scorers: what a reflection, an empathic and a fluent reply look like on the surface of words.

They need no model and take a fraction of a millisecond. They are shallow on purpose: each one multiplies what it looks
for with penalties for the cheap ways to get it (copying, keyword lists, stuffed feelings, one memorised sentence),
because a policy trained on a score finds these ways.
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from training.data.records import Record
from training.scorers import lexicon
from training.scorers.base import Context, Scorer, ScorerConfig, ScorerError, clip
from training.scorers.calibration import sigmoid
from training.scorers.guards import distinct_share, length_window
from training.scorers.lexicon import (
    AMBIGUOUS,
    FAMILY_OF,
    FEELING_VERBS,
    FIRST_PERSON,
    FLIP,
    FRAME,
    FUNCTION,
    NEGATIONS,
    POSITIVE_FAMILIES,
    QUESTION_START,
    SECOND_PERSON,
    stem,
)
from training.scorers.ngram import NgramModel, pieces
from training.scorers.words import words

ENOUGH = 5  # content words of the client; a reply that gives back so many needs no more
FEWEST_WORDS, MOST_WORDS = 5, 40
SMALLEST_CORPUS = 50  # replies; quantiles of fewer mean nothing


class LexicalReflectionConfig(ScorerConfig):
    """Does the reply give the client's meaning back?"""

    kind: Literal["lexical_reflection"] = "lexical_reflection"

    def build(self, context: Context) -> Scorer:
        return LexicalReflection()


class LexicalEmpathyConfig(ScorerConfig):
    """Does the reply name what the client feels, and say that it may be felt?"""

    kind: Literal["lexical_empathy"] = "lexical_empathy"

    def build(self, context: Context) -> Scorer:
        return LexicalEmpathy()


class LexicalFluencyConfig(ScorerConfig):
    """Does the reply read like a whole, well-formed one? With a corpus (the records that the recipe trains on) a
    trigram model takes part; without one only form counts."""

    kind: Literal["lexical_fluency"] = "lexical_fluency"
    min_words: int = Field(8, ge=1)
    max_words: int = Field(30, ge=1)
    use_corpus: bool = True  # false: form only, whatever corpus the recipe has

    @model_validator(mode="after")
    def _ordered(self) -> LexicalFluencyConfig:
        if self.min_words > self.max_words:
            raise ValueError("min_words is above max_words")
        return self

    def build(self, context: Context) -> Scorer:
        return LexicalFluency(self, context.corpus if self.use_corpus else ())


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as the scorers see it."""

    raw: str
    text: str  # lower-case, straight quotes, two-word feelings joined
    tokens: list[str]
    content: list[str]  # stems of the words that carry meaning; a feeling word is its family
    feelings: list[str]  # families, negated ones left out, in order

    @property
    def function_share(self) -> float:
        return sum(token in FUNCTION or token in FRAME for token in self.tokens) / max(1, len(self.tokens))


def read(text: str) -> Reading:
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


class LexicalReflection:
    """(0.1 + 0.9 · coverage · precision) · form, each in [0, 1].

    coverage: share of the client's content words that come back, of at most `ENOUGH`. precision: share of the reply's
    content words that are the client's, full from one half on, so that a reply may add meaning. form: factors below 1
    for a question, advice, the first person, copied text, not addressing the client, word lists and repetition.
    """

    __name__ = "lexical_reflection"

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        clients = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
        return [self.score(clients[prompt], read(reply)) for prompt, reply in zip(prompts, completions, strict=True)]

    def score(self, client: Reading, reply: Reading) -> float:
        if not reply.tokens:
            return 0.0
        said, given = set(client.content), set(reply.content)
        back = len(said & given)
        coverage = min(1.0, back / max(1, min(ENOUGH, len(said))))
        precision = min(1.0, 2 * back / max(1, len(given)))
        form = _copy_factor(client, reply) * _stance_factor(reply) * _form_factor(reply, client)
        # The 0.1 tells a statement about the client from a question or advice even where no word is shared.
        return clip((0.1 + 0.9 * coverage * precision) * form)


class LexicalEmpathy:
    """(0.5 · feeling + 0.35 · validation + 0.15 · address) · form.

    feeling: 1 for naming a feeling of the client's family, 0.5 for another of the same tone, 0 for none or for the
    opposite tone. validation: 0.7 for one kind of validating phrase, 1 for two. address: the reply says "you". form:
    factors below 1 for dismissal, advice, questions, more feelings than the client could have, and a reply that shares
    no word with the client beyond the feeling, so that one sentence cannot serve everybody.
    """

    __name__ = "lexical_empathy"

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        clients = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
        return [self.score(clients[prompt], read(reply)) for prompt, reply in zip(prompts, completions, strict=True)]

    def score(self, client: Reading, reply: Reading) -> float:
        feeling, validation = _feeling(client, reply), _validation(client, reply)
        if not feeling and not validation:
            return 0.0
        address = float(bool(SECOND_PERSON & set(reply.tokens)))
        form = _form_factor(reply, client)
        form *= 0.15 if lexicon.DISMISSAL.search(reply.text) else 1.0
        form *= 0.6 if lexicon.ADVICE.search(reply.text) else 1.0
        form *= 0.8 if _asks(reply) else 1.0
        form *= 0.5 ** max(0, len(set(reply.feelings) - set(client.feelings)) - 1)
        shared = set(client.content) & set(reply.content)
        form *= 1.0 if any(not word.startswith("feeling:") for word in shared) else 0.75
        return clip((0.5 * feeling + 0.35 * validation + 0.15 * address) * form)


class LexicalFluency:
    """length window · no repetition · sentence form · function words · cohesion · how likely the words are.

    cohesion: 0.75 for a reply that shares no content word with the client. The last factor, with a corpus, is the mean
    log-probability under a trigram model that expects the client's words (`ngram`), through a sigmoid, 0.5 at the
    median and 0.95 at the 95 % quantile of the corpus' own held-out replies.
    """

    __name__ = "lexical_fluency"

    def __init__(self, config: LexicalFluencyConfig, corpus: Sequence[Record]) -> None:
        self.config = config
        self.model: NgramModel | None = None
        pairs = [(record.prompt, record.response) for record in corpus if record.response is not None]
        if corpus and len(pairs) < SMALLEST_CORPUS:
            raise ScorerError(
                f"lexical_fluency: the corpus has {len(pairs)} replies; it takes {SMALLEST_CORPUS}, or "
                "use_corpus: false",
                param="use_corpus",
            )
        if pairs:
            held, rest = _hold_out(pairs)
            self.model = NgramModel(reply for _, reply in rest)
            logs = sorted(self.model.mean_log_probability(reply, _turned(prompt)) for prompt, reply in held)
            self.usual, self.best = logs[len(logs) // 2], logs[min(len(logs) - 1, int(0.95 * len(logs)))]

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [self.score(prompt, reply) for prompt, reply in zip(prompts, completions, strict=True)]

    def score(self, prompt: str, text: str) -> float:
        reply = read(text)
        if not reply.tokens:
            return 0.0
        score = length_window(len(reply.tokens), self.config.min_words, self.config.max_words)
        score *= distinct_share(reply.tokens, 2) ** 3 * _function_factor(reply) * sentence_form(text)
        score *= 1.0 if set(read(prompt).content) & set(reply.content) else 0.75
        if self.model is not None:
            steepness = math.log(19) / max(self.best - self.usual, 1e-6)  # sigmoid(log 19) = 0.95
            score *= sigmoid(steepness * (self.model.mean_log_probability(text, _turned(prompt)) - self.usual))
        return clip(score)


def sentence_form(text: str) -> float:
    """1 for text whose sentences start with a capital and that ends with a mark; 0.6 for each that fails; a text of odd
    characters loses their share."""
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


def _copy_factor(client: Reading, reply: Reading) -> float:
    """0.1 for a stretch of the client's text as it was said; falling from 1 to 0.5 as a reply becomes nothing but one
    stretch with the person turned round."""
    verbatim = _longest_run(client.tokens, reply.tokens) / len(reply.tokens)
    if verbatim > 0.85:
        return 0.1
    turned = _longest_run([FLIP.get(token, token) for token in client.tokens], reply.tokens) / len(reply.tokens)
    return 1.0 - 2.0 * max(0.0, max(turned, verbatim) - 0.75)


def _stance_factor(reply: Reading) -> float:
    """A reflection is a statement about the client."""
    factor = 0.35 if _asks(reply) else 1.0
    factor *= 0.35 if lexicon.ADVICE.search(reply.text) else 1.0
    # "I hear that", "I'm sorry" are the counselor's; any other first person is the client's own, left standing.
    own = re.sub(r"\bi(?: can)? (?:hear|see|understand|sense|imagine)\b|\bi'm (?:so |really )?sorry\b", " ", reply.text)
    factor *= 0.3 if FIRST_PERSON & set(words(own)) else 1.0
    return factor * (1.0 if SECOND_PERSON & set(reply.tokens) else 0.6)


def _form_factor(reply: Reading, client: Reading) -> float:
    """1 for connected text of a sensible length; less for word lists, repetition, a few words or a flood of them."""
    factor = length_window(len(reply.tokens), FEWEST_WORDS, MOST_WORDS)
    factor *= distinct_share(reply.tokens, 2) ** 3
    return factor * _function_factor(reply) * _joint_factor(reply.tokens, client.tokens) * sentence_form(reply.raw)


def _function_factor(reply: Reading) -> float:
    """Running English has about 40 % to 80 % function and frame words; below 35 % it is a list, above 90 % empty."""
    share = reply.function_share
    return min(1.0, share / 0.35, max(0.3, (1 - share) / 0.1))


def _joint_factor(tokens: list[str], known: list[str]) -> float:
    """1 for connected words; towards 0 for a heap of them. Up to a quarter of the neighbours may be two content words
    that the client did not say side by side, as in running English; keyword lists have nothing else."""
    said = set(pairwise(known))
    pairs = list(pairwise(tokens))
    if not pairs:
        return 1.0
    loose = sum(
        pair not in said and all(token not in FUNCTION and token not in FRAME for token in pair) for pair in pairs
    )
    return clip(1 - 2 * (loose / len(pairs) - 0.25))


def _asks(reply: Reading) -> bool:
    return "?" in reply.text or bool(reply.tokens and reply.tokens[0] in QUESTION_START and "," not in reply.text)


def _feeling(client: Reading, reply: Reading) -> float:
    named = set(reply.feelings)
    if not named:
        return 0.0
    if named & set(client.feelings):
        return 1.0
    glad = _is_glad(client)
    if glad is None:  # the client names no feeling; most who seek help are not glad
        return 0.7 if named - POSITIVE_FAMILIES else 0.2
    return 0.5 if any((family in POSITIVE_FAMILIES) == glad for family in named) else 0.0


def _validation(client: Reading, reply: Reading) -> float:
    glad = _is_glad(client)
    kinds = {kind for kind, pattern in lexicon.VALIDATION.items() if pattern.search(reply.text)}
    if glad:
        kinds -= {"sorry", "hard"}  # commiserating with good news
        kinds |= {"gladness"} if lexicon.GLADNESS.search(reply.text) else set()
    return (0.0, 0.7, 1.0)[min(2, len(kinds))]


def _is_glad(client: Reading) -> bool | None:
    """Do the client's feelings tell of something good? None where the client names none."""
    if not client.feelings:
        return None
    return sum(family in POSITIVE_FAMILIES for family in client.feelings) * 2 > len(client.feelings)


def _longest_run(left: list[str], right: list[str]) -> int:
    """Length of the longest run of words that both contain."""
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


def _turned(prompt: str) -> list[str]:
    """The client's words as a counselor says them."""
    return [FLIP.get(piece, piece) for piece in pieces(prompt)]


def _hold_out(pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """A tenth of the distinct pairs, picked by their hash, and the rest."""
    distinct = sorted(dict.fromkeys(pairs), key=lambda pair: hashlib.sha256("\0".join(pair).encode()).digest())
    cut = max(10, len(distinct) // 10)
    return distinct[:cut], distinct[cut:]
