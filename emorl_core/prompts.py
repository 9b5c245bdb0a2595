"""Prompts -> token ids, in the bundle's template and within its limits."""

from __future__ import annotations

from collections.abc import Sequence

from emorl_core.bundle import BundleSpec
from emorl_core.errors import InvalidRequest, PromptTooLong
from emorl_core.tokenizer import Tokenizer

# Tokenizers drop some characters (all but one of a run of spaces) and join others (a letter and its accents), so a text
# may have more characters than its tokens have.
_SPARE_CHARS = 2


class PromptEncoder:
    """Safe to call from several threads."""

    def __init__(self, spec: BundleSpec, tokenizer: Tokenizer, max_chars: int | None = None) -> None:
        """max_chars: a longer prompt is not tokenised; None: twice what `max_source_tokens` of the bundle can hold if
        each is the longest token of the vocabulary."""
        self._spec = spec
        self._tokenizer = tokenizer
        self.max_chars = max_chars or _SPARE_CHARS * spec.max_source_tokens * tokenizer.longest_token

    def encode(self, prompt: str, *, field: str = "prompt") -> tuple[int, ...]:
        """field: what errors call the prompt.

        Raises InvalidRequest for an empty prompt and for one that is no text, PromptTooLong naming the limit."""
        self._check_chars(prompt, field)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest(f"{field} is empty; allowed: text with at least one character", param=field)
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{field} holds half a surrogate pair; allowed: Unicode text", param=field) from None
        ids = tuple(self._tokenizer.encode_prompt(prompt, *self._spec.around))
        if len(ids) > self._spec.max_source_tokens:
            raise PromptTooLong(
                f"{field} has {len(ids)} tokens with its template; allowed: up to {self._spec.max_source_tokens}"
                " (max_source_tokens of the bundle)",
                param=field,
            )
        return ids

    def encode_all(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """As `encode`. None is tokenised before all are known to be short enough; errors name the one at fault."""
        for i, prompt in enumerate(prompts):
            self._check_chars(prompt, f"prompts.{i}")
        return [self.encode(prompt, field=f"prompts.{i}") for i, prompt in enumerate(prompts)]

    def _check_chars(self, prompt: str, field: str) -> None:
        if isinstance(prompt, str) and len(prompt) > self.max_chars:
            raise PromptTooLong(
                f"{field} has {len(prompt)} characters; allowed: up to {self.max_chars} (max_prompt_chars), and"
                f" {self._spec.max_source_tokens} tokens (max_source_tokens of the bundle)",
                param=field,
            )
