"""The demo's scorers: surface features of words that indicate reflection, empathy and fluency.

They need no model and take a fraction of a millisecond. They are deliberately shallow. Each multiplies its measure with
penalties for cheap ways to score high (copying, keyword lists, piled-up feelings, one memorised sentence), because a
policy trained on a score finds these.
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from emorl_core.scorers.base import Context, Pair, Scorer, ScorerConfig, ScorerError, clip
from emorl_core.scorers.calibration import sigmoid
from emorl_core.scorers.guards import distinct_share, length_window
from emorl_core.scorers.lexical import lexicon
from emorl_core.scorers.lexical.lexicon import FLIP, POSITIVE_FAMILIES, SECOND_PERSON
from emorl_core.scorers.lexical.ngram import NgramModel, pieces
from emorl_core.scorers.lexical.reading import (
    Reading,
    asks,
    form_factor,
    function_factor,
    has_own_voice,
    read,
    sentence_form,
)
from emorl_core.scorers.words import longest_run

ENOUGH = 5  # content words of the client that a reply must repeat for full coverage
SMALLEST_CORPUS = 50  # replies; quantiles of fewer are meaningless


class LexicalReflectionConfig(ScorerConfig):
    """Whether the reply reflects the client's meaning."""

    kind: Literal["lexical_reflection"] = "lexical_reflection"

    def build(self, context: Context) -> Scorer:
        return LexicalReflection()


class LexicalEmpathyConfig(ScorerConfig):
    """Whether the reply names the client's feeling and validates it."""

    kind: Literal["lexical_empathy"] = "lexical_empathy"

    def build(self, context: Context) -> Scorer:
        return LexicalEmpathy()


class LexicalFluencyConfig(ScorerConfig):
    """Whether the reply is complete and well-formed. With a corpus (the records that the recipe trains on) a trigram
    model contributes; without one only form counts."""

    kind: Literal["lexical_fluency"] = "lexical_fluency"
    min_words: int = Field(8, ge=1)
    max_words: int = Field(30, ge=1)
    use_corpus: bool = True  # false: form only, even if there is a corpus

    @model_validator(mode="after")
    def _ordered(self) -> LexicalFluencyConfig:
        if self.min_words > self.max_words:
            raise ValueError("min_words is above max_words")
        return self

    @property
    def reads_corpus(self) -> bool:
        return self.use_corpus

    def build(self, context: Context) -> Scorer:
        return LexicalFluency(self, context.corpus if self.use_corpus else ())


class _ByReading(ABC):
    """Base of scorers over readings; each prompt and reply is read once."""

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        clients = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
        return [self.score(clients[prompt], read(reply)) for prompt, reply in zip(prompts, completions, strict=True)]

    @abstractmethod
    def score(self, client: Reading, reply: Reading) -> float:
        """Score in [0, 1]."""


class LexicalReflection(_ByReading):
    """(0.1 + 0.9 · coverage · precision) · form, each in [0, 1].

    coverage: share of the client's content words that the reply repeats, `ENOUGH` being enough. precision: share of the
    reply's content words that are the client's, 1 from one half on, so that a reply may add meaning. form: factors
    below 1 for a question, advice, the first person, copied text, not addressing the client, word lists and repetition.
    """

    __name__ = "lexical_reflection"

    def score(self, client: Reading, reply: Reading) -> float:
        if not reply.tokens:
            return 0.0
        said, given = set(client.content), set(reply.content)
        back = len(said & given)
        coverage = min(1.0, back / max(1, min(ENOUGH, len(said))))
        precision = min(1.0, 2 * back / max(1, len(given)))
        form = _copy_factor(client, reply) * _stance_factor(reply) * form_factor(reply, client)
        # The 0.1 distinguishes a statement about the client from a question or advice even if no word is shared.
        return clip((0.1 + 0.9 * coverage * precision) * form)


class LexicalEmpathy(_ByReading):
    """(0.5 · feeling + 0.35 · validation + 0.15 · address) · form.

    feeling: 1 for naming a feeling of the client's family, 0.5 for another of the same tone, 0 for none or for the
    opposite tone. validation: 0.7 for one kind of validating phrase, 1 for two. address: the reply says "you". form:
    factors below 1 for dismissal, advice, questions, too many feelings, and a reply that shares no word with the client
    except the feeling, so that no constant reply scores high.
    """

    __name__ = "lexical_empathy"

    def score(self, client: Reading, reply: Reading) -> float:
        feeling, validation = _feeling(client, reply), _validation(client, reply)
        if not feeling and not validation:
            return 0.0
        address = float(bool(SECOND_PERSON & set(reply.tokens)))
        form = form_factor(reply, client)
        form *= 0.15 if lexicon.DISMISSAL.search(reply.text) else 1.0
        form *= 0.6 if lexicon.ADVICE.search(reply.text) else 1.0
        form *= 0.3 if not address and has_own_voice(reply) else 1.0  # the client's own sentence, unchanged
        form *= 0.8 if asks(reply) else 1.0
        form *= 0.5 ** max(0, len(set(reply.feelings) - set(client.feelings)) - 1)
        shared = set(client.content) & set(reply.content)
        form *= 1.0 if any(not word.startswith("feeling:") for word in shared) else 0.75
        return clip((0.5 * feeling + 0.35 * validation + 0.15 * address) * form)


class LexicalFluency:
    """length window · no repetition · sentence form · function words · cohesion · likelihood.

    cohesion: 0.75 for a reply that shares no content word with the client. The likelihood factor, used only with a
    corpus, is the mean log-probability under a trigram model that expects the client's words (`ngram`), through a
    sigmoid that is 0.5 at the median and 0.95 at the 95 % quantile of the corpus's own held-out replies.
    """

    __name__ = "lexical_fluency"

    def __init__(self, config: LexicalFluencyConfig, corpus: Sequence[Pair]) -> None:
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
        score *= distinct_share(reply.tokens, 2) ** 3 * function_factor(reply) * sentence_form(text)
        score *= 1.0 if set(read(prompt).content) & set(reply.content) else 0.75
        if self.model is not None:
            steepness = math.log(19) / max(self.best - self.usual, 1e-6)  # sigmoid(log 19) = 0.95
            score *= sigmoid(steepness * (self.model.mean_log_probability(text, _turned(prompt)) - self.usual))
        return clip(score)


def _copy_factor(client: Reading, reply: Reading) -> float:
    """0.1 for a passage copied unchanged from the client; otherwise falling from 1 to 0.5 as the reply consists more of
    one passage with only the person changed."""
    verbatim = longest_run(client.tokens, reply.tokens) / len(reply.tokens)
    if verbatim > 0.85:
        return 0.1
    turned = longest_run([FLIP.get(token, token) for token in client.tokens], reply.tokens) / len(reply.tokens)
    return 1.0 - 2.0 * max(0.0, max(turned, verbatim) - 0.75)


def _stance_factor(reply: Reading) -> float:
    """Penalties for anything but a statement about the client, which a reflection must be."""
    factor = 0.35 if asks(reply) else 1.0
    factor *= 0.35 if lexicon.ADVICE.search(reply.text) else 1.0
    factor *= 0.3 if has_own_voice(reply) else 1.0  # the client's own sentence, unchanged, or the counselor's view
    return factor * (1.0 if SECOND_PERSON & set(reply.tokens) else 0.6)


def _feeling(client: Reading, reply: Reading) -> float:
    named = set(reply.feelings)
    if not named:
        return 0.0
    if named & set(client.feelings):
        return 1.0
    glad = _is_glad(client)
    if glad is None:  # the client names no feeling; most people who seek help are not glad
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
    """Whether the client's feelings are positive; None if the client names none."""
    if not client.feelings:
        return None
    return sum(family in POSITIVE_FAMILIES for family in client.feelings) * 2 > len(client.feelings)


def _turned(prompt: str) -> list[str]:
    """The client's words in the second person."""
    return [FLIP.get(piece, piece) for piece in pieces(prompt)]


def _hold_out(pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """A tenth of the distinct pairs, selected by hash, and the rest."""
    distinct = sorted(dict.fromkeys(pairs), key=lambda pair: hashlib.sha256("\0".join(pair).encode()).digest())
    cut = max(10, len(distinct) // 10)
    return distinct[:cut], distinct[cut:]
