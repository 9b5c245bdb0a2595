"""Prompts -> token ids, in the bundle's template and within its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emorl_core.bundle import BundleSpec
from emorl_core.errors import InvalidRequest, PromptTooLong
from emorl_core.text.chat import Message, read_messages
from emorl_core.text.tokenizer import Tokenizer

# Tokenizers drop some characters (all but one of a run of spaces) and join others (a letter and its accents), so a text
# may have more characters than its tokens have.
_SPARE_CHARS = 2


class PromptEncoder:
    """Safe to call from several threads."""

    def __init__(self, spec: BundleSpec, tokenizer: Tokenizer, max_chars: int | None = None) -> None:
        """max_chars: a longer prompt or chat is not tokenised; None: twice what `max_source_tokens` of the bundle can
        hold if each is the longest token of the vocabulary.

        Raises BundleError for a chat template that cannot be used."""
        self._spec = spec
        self._tokenizer = tokenizer
        self._chat = None if spec.chat is None else tokenizer.chat(spec.chat.system)
        self.max_chars = max_chars or _SPARE_CHARS * spec.max_source_tokens * tokenizer.longest_token

    def encode(self, prompt: str, *, field: str = "prompt") -> tuple[int, ...]:
        """field: what errors call the prompt.

        Raises InvalidRequest for an empty prompt and for one that is no text, PromptTooLong naming the limit."""
        self._check_text(prompt, field)
        return self._checked(self.ids(prompt, field=field), field)

    def ids(self, prompt: str, *, field: str = "prompt") -> list[int]:
        """In the template or chat template, whatever its length."""
        if self._chat is not None:
            return self._chat.encode([Message("user", prompt)], field=field)
        return self._tokenizer.encode_prompt(prompt, *self._spec.around)

    def encode_chat(
        self, messages: Sequence[Message | Mapping[str, Any]], *, field: str = "messages"
    ) -> tuple[int, ...]:
        """A chat through the base's chat template; see `emorl_core.text.chat.read_messages`.

        Raises InvalidRequest for a bundle without chat and for messages that are none, PromptTooLong naming the limit.
        """
        if self._chat is None:
            raise InvalidRequest(
                f"{field}: this bundle has no chat (chat in bundle.yaml); allowed: a prompt", param=field
            )
        read = read_messages(messages, field=field)
        self._check_length(sum(len(message.text) for message in read), field)
        for i, message in enumerate(read):
            _check_unicode(message.text, f"{field}.{i}.content")
        return self._checked(self._chat.encode(read, field=field), field)

    def encode_raw(self, text: str, *, field: str = "prompt") -> tuple[int, ...]:
        """Without any template, and with control tokens where their names stand. Raises as `encode`."""
        self._check_text(text, field)
        return self._checked(self._tokenizer.encode(text), field)

    @property
    def template_tokens(self) -> int:
        """What the template takes by itself."""
        if self._chat is not None:
            return len(self._chat.encode([Message("user", "")]))
        return len(self._tokenizer.encode(self._spec.wrap("")))

    def _checked(self, encoded: Sequence[int], field: str) -> tuple[int, ...]:
        ids = tuple(encoded)
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

    def _check_text(self, prompt: str, field: str) -> None:
        self._check_chars(prompt, field)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest(f"{field} is empty; allowed: text with at least one character", param=field)
        _check_unicode(prompt, field)

    def _check_chars(self, prompt: str, field: str) -> None:
        if isinstance(prompt, str):
            self._check_length(len(prompt), field)

    def _check_length(self, chars: int, field: str) -> None:
        if chars > self.max_chars:
            raise PromptTooLong(
                f"{field} has {chars} characters; allowed: up to {self.max_chars} (max_prompt_chars), and"
                f" {self._spec.max_source_tokens} tokens (max_source_tokens of the bundle)",
                param=field,
            )


def _check_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} holds half a surrogate pair; allowed: Unicode text", param=field) from None
