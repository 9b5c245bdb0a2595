"""Log-probabilities in the formats of OpenAI's two endpoints. A token has the same text wherever it appears.

The texts of an answer's tokens concatenate to what was generated: the answer, then what ended it (a stop string, or the
end-of-sequence token's name). A token that is part of a character is `bytes:…`; such tokens are joined by their bytes.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emorl_core.text.spelling import Spelling
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import Completion, TokenEvent

_LOWEST = -9999.0  # OpenAI's value for minus infinity, which JSON lacks

Alternatives = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A chosen token, and the most likely ones in its place, most likely first. `offset`: characters before it."""

    offset: int
    chosen: Spelling
    logprob: float
    tops: list[tuple[Spelling, float]]


@dataclass
class TokenNames:
    """Names the tokens of one choice, in order."""

    tokenizer: Tokenizer
    _begun: bool = False  # an ordinary token has been seen
    _length: int = 0  # complete characters
    _characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def name(self, token_id: int, value: float, alternatives: Alternatives) -> NamedToken:
        def spell(each: int) -> Spelling:
            return self.tokenizer.spell(each, first=not self._begun)

        # Ties go to the chosen token.
        others = [(each, other) for each, other in alternatives if each != token_id]
        ranked = sorted([(token_id, value), *others], key=lambda item: -item[1])[: len(alternatives)]
        tops = [(spell(each), _finite(other)) for each, other in ranked]
        chosen = spell(token_id)
        named = NamedToken(self._place(chosen.data), chosen, _finite(value), tops)
        self._begun = self._begun or not chosen.special
        return named

    def _place(self, data: bytes) -> int:
        """The offset of a token that adds `data`; a part of a character has its character's offset."""
        if data and not 0x80 <= data[0] < 0xC0:  # no continuation byte: the bytes before it will not become a character
            self._length += len(self._characters.decode(b"", final=True))
        place = self._length
        self._length += len(self._characters.decode(data))
        return place

    def of_event(self, event: TokenEvent) -> list[NamedToken]:
        return [self.name(event.token_id, event.logprob, event.top_logprobs)]

    def of_completion(self, completion: Completion) -> list[NamedToken]:
        alternatives = completion.top_logprobs or ((),) * len(completion.token_ids)
        rows = zip(completion.token_ids, completion.logprobs, alternatives, strict=True)
        return [self.name(*row) for row in rows]


def _finite(value: float) -> float:
    return _LOWEST if math.isnan(value) else max(value, _LOWEST)


def completion_logprobs(tokens: Sequence[NamedToken]) -> dict[str, Any]:
    """`/v1/completions`: parallel lists. A token's `top_logprobs` always include the chosen one."""
    tops: list[dict[str, float]] = []
    for token in tokens:
        top: dict[str, float] = {}
        for spelling, value in [*token.tops, (token.chosen, token.logprob)]:
            top.setdefault(spelling.text, value)  # two tokens can spell the same text
        tops.append(top)
    return {
        "tokens": [token.chosen.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops if any(token.tops for token in tokens) else None,
        "text_offset": [token.offset for token in tokens],
    }


def chat_logprobs(tokens: Sequence[NamedToken]) -> dict[str, Any]:
    """`/v1/chat/completions`: one object per token."""

    def entry(spelling: Spelling, value: float) -> dict[str, Any]:
        return {"token": spelling.text, "logprob": value, "bytes": list(spelling.data)}

    content = [
        {**entry(token.chosen, token.logprob), "top_logprobs": [entry(*top) for top in token.tops]} for token in tokens
    ]
    return {"content": content, "refusal": None}
