"""Prompts and chats -> token ids for `base` and for objectives with their own prompts, within the bundle's limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emorl_core.bundles.bundle import BundleSpec, split_template
from emorl_core.errors import BundleError, InvalidRequest, PromptTooLong
from emorl_core.text.chat import Message, read_messages
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import LanePrompts

# Tokenizers drop some characters (repeated spaces) and merge others (a letter and its accents), so a text may have more
# characters than its tokens.
_SPARE_CHARS = 2
_FEW_CHARS = 8  # characters per token, about twice that of text in a known language

Said = str | tuple[Message, ...]  # a client's validated prompt or chat


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids for `base`, and for lanes that read others (see `Request`)."""

    ids: tuple[int, ...]
    of_lanes: LanePrompts = ()

    @property
    def longest(self) -> int:
        return max(map(len, (self.ids, *self.of_lanes)))


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

    # -- what a client says ----------------------------------------------------------------------------------------

    def read(self, prompt: str, *, field: str = "prompt") -> Said:
        """field: the prompt's name in errors.

        Raises InvalidRequest for an empty prompt and for one that is no text, PromptTooLong naming the limit."""
        self._check_chars(prompt, field)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest(f"{field} is empty; allowed: text with at least one character", param=field)
        _check_unicode(prompt, field)
        return prompt

    def read_all(self, prompts: Sequence[str]) -> list[Said]:
        """As `read`. The length of all is checked before any is read; errors name the one at fault."""
        for i, prompt in enumerate(prompts):
            self._check_chars(prompt, f"prompts.{i}")
        return [self.read(prompt, field=f"prompts.{i}") for i, prompt in enumerate(prompts)]

    def read_chat(self, messages: Sequence[Message | Mapping[str, Any]], *, field: str = "messages") -> Said:
        """See `emorl_core.text.chat.read_messages`.

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
        return read

    # -- token ids ---------------------------------------------------------------------------------------------------

    def encode(self, said: Said, *, field: str = "prompt") -> tuple[int, ...]:
        """The token ids for `base`. Raises PromptTooLong, and InvalidRequest for a chat that the template does not
        accept."""
        # A chat's messages as one text: many of them may be too long only together.
        self._check_beginning(said if isinstance(said, str) else " ".join(each.text for each in said), field)
        return self._checked(self.ids(said, field=field), field, "its template")

    def lane_prompts(self, said: Said, lanes: Collection[int], *, field: str = "prompt") -> LanePrompts:
        """The token ids for those of `lanes` that have their own prompts; see `Request`. Raises as `encode`."""
        own = set(self.prompted(lanes))
        if not own:
            return ()
        return tuple(
            self._checked(self.ids(said, name, field=field), field, f"the prompt of objective {name!r}")
            if name in own
            else ()
            for name in self._spec.lanes
        )

    def prompted(self, lanes: Collection[int]) -> list[str]:
        """The names of objectives with their own prompts."""
        return [name for i, name in enumerate(self._spec.lanes) if i in lanes and name in self._spec.prompts]

    def encode_raw(self, text: str, *, field: str = "prompt") -> tuple[int, ...]:
        """Encode without any template; names of control tokens become those tokens. Raises as `read` and `encode`."""
        self.read(text, field=field)
        self._check_beginning(text, field)
        return self._checked(self._tokenizer.encode(text), field, "what the tokenizer adds")

    def ids(self, said: Said, objective: str | None = None, *, field: str = "prompt") -> list[int]:
        """The token ids for `base` or an objective, without a length check."""
        own = None if objective is None else self._spec.prompts.get(objective)
        if self._chat is None:
            assert isinstance(said, str)  # bundles without a chat template accept no chats
            around = self._spec.around if own is None or own.template is None else split_template(own.template)
            return self._tokenizer.encode_prompt(said, *around)
        messages = (Message("user", said),) if isinstance(said, str) else said
        if own is not None and own.system is not None:
            messages = _told(messages, own.system)
        return self._chat.encode(messages, field=field)

    def check(self) -> None:
        """Raises BundleError for a template that leaves no room for a prompt, or a system message that the chat
        template does not take: the bundle's, or an objective's."""
        self._spec.check_template(self.template_tokens())
        for objective in self._spec.prompts:
            self._spec.check_template(self.template_tokens(objective), objective)

    def template_tokens(self, objective: str | None = None) -> int:
        """The number of tokens of the template, or of an objective's prompt, alone. Raises BundleError."""
        key = "chat.system" if objective is None else f"objectives.{objective}.prompt.system"
        try:
            return len(self.ids("", objective, field=key))
        except InvalidRequest as error:
            raise BundleError(error.message, param=key) from None

    # -- limits ------------------------------------------------------------------------------------------------------

    def _checked(self, encoded: Sequence[int], field: str, around: str) -> tuple[int, ...]:
        ids = tuple(encoded)
        if len(ids) > self._spec.max_source_tokens:
            raise PromptTooLong(
                f"{field} has {len(ids)} tokens with {around}; allowed: up to {self._spec.max_source_tokens}"
                " (max_source_tokens of the bundle)",
                param=field,
            )
        return ids

    def _check_beginning(self, text: str, field: str) -> None:
        """Refuse a text that is far too long after tokenising its beginning only, so that refusing is no more expensive
        than reading. If the beginning has twice the allowed tokens, the text cannot be within the limit."""
        most, length = self._spec.max_source_tokens, _FEW_CHARS * self._spec.max_source_tokens
        while length < len(text):
            if self._tokenizer.count(text[:length]) > 2 * most:
                raise PromptTooLong(
                    f"{field} has more than {2 * most} tokens; allowed: up to {most} (max_source_tokens of the bundle)",
                    param=field,
                )
            length *= 2

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


def _told(messages: Sequence[Message], sentence: str) -> tuple[Message, ...]:
    """Append an objective's sentence to the system message."""
    first, *rest = messages
    if first.role != "system":
        return (Message("system", sentence), *messages)
    return (Message("system", f"{first.text}\n\n{sentence}" if first.text.strip() else sentence), *rest)


def _check_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} holds half a surrogate pair; allowed: Unicode text", param=field) from None
