"""Prompts -> token ids, in the bundle's template and within its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from emorl_core.bundle import BundleSpec
from emorl_core.errors import InvalidRequest, PromptTooLong
from emorl_core.tokenizer import Tokenizer

# Tokenizers drop some characters (all but one of a run of spaces) and join others (a letter and its accents), so a text
# may have more characters than its tokens have.
_SPARE_CHARS = 2

T = TypeVar("T")


class PromptEncoder:
    """Safe to call from several threads."""

    def __init__(self, spec: BundleSpec, tokenizer: Tokenizer, max_chars: int | None = None) -> None:
        """max_chars: a longer prompt is not tokenised; None: twice what `max_source_tokens` of the bundle can hold if
        each is the longest token of the vocabulary."""
        self._spec = spec
        self._tokenizer = tokenizer
        self.max_chars = max_chars or _SPARE_CHARS * spec.max_source_tokens * tokenizer.longest_token

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Raises InvalidRequest for an empty prompt and for one that is no text, PromptTooLong naming the limit."""
        self._check_chars(prompt)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest("prompt is empty; allowed: text with at least one character", param="prompt")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("prompt holds half a surrogate pair; allowed: Unicode text", param="prompt") from None
        ids = tuple(self._tokenizer.encode(self._spec.wrap(prompt)))
        if len(ids) > self._spec.max_source_tokens:
            raise PromptTooLong(
                f"prompt has {len(ids)} tokens with its template; allowed: up to {self._spec.max_source_tokens}"
                " (max_source_tokens of the bundle)",
                param="prompt",
            )
        return ids

    def encode_all(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """As `encode`. None is tokenised before all are known to be short enough; errors name the one at fault."""
        _each(prompts, self._check_chars)
        return _each(prompts, self.encode)

    def _check_chars(self, prompt: str) -> None:
        if isinstance(prompt, str) and len(prompt) > self.max_chars:
            raise PromptTooLong(
                f"prompt has {len(prompt)} characters; allowed: up to {self.max_chars} (max_prompt_chars), and"
                f" {self._spec.max_source_tokens} tokens (max_source_tokens of the bundle)",
                param="prompt",
            )


def _each(prompts: Sequence[str], work: Callable[[str], T]) -> list[T]:
    done = []
    for i, prompt in enumerate(prompts):
        try:
            done.append(work(prompt))
        except InvalidRequest as error:
            raise type(error)(f"prompts.{i}: {error.message}", param=f"prompts.{i}") from None
    return done
