"""Prompts and chats -> token ids, as `base` reads them and as objectives with prompts of their own do, within the
bundle's limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emorl_core.bundles.bundle import BundleSpec, split_template
from emorl_core.errors import BundleError, InvalidRequest, PromptTooLong
from emorl_core.text.chat import Message, read_messages
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import LanePrompts

# Tokenizers drop some characters (all but one of a run of spaces) and join others (a letter and its accents), so a text
# may have more characters than its tokens have.
_SPARE_CHARS = 2
_FEW_CHARS = 8  # a token, about twice what a text of a known language has

Said = str | tuple[Message, ...]  # what a client said, checked


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids as `base` reads them, and as those lanes do that read others (see `Request`)."""

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
        """field: what errors call the prompt.

        Raises InvalidRequest for an empty prompt and for one that is no text, PromptTooLong naming the limit."""
        self._check_chars(prompt, field)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest(f"{field} is empty; allowed: text with at least one character", param=field)
        _check_unicode(prompt, field)
        return prompt

    def read_all(self, prompts: Sequence[str]) -> list[Said]:
        """As `read`. All are known to be short enough before any is looked at; errors name the one at fault."""
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
        """As `base` reads it. Raises PromptTooLong, and InvalidRequest for a chat that the template does not take."""
        # A chat's messages as one text: many of them may be too long only together.
        self._check_beginning(said if isinstance(said, str) else " ".join(each.text for each in said), field)
        return self._checked(self.ids(said, field=field), field, "its template")

    def lane_prompts(self, said: Said, lanes: Collection[int], *, field: str = "prompt") -> LanePrompts:
        """As those of `lanes` read it that have prompts of their own; see `Request`. Raises as `encode`."""
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
        """The names of those that have prompts of their own."""
        return [name for i, name in enumerate(self._spec.lanes) if i in lanes and name in self._spec.prompts]

    def encode_raw(self, text: str, *, field: str = "prompt") -> tuple[int, ...]:
        """Without any template, and with control tokens where their names stand. Raises as `read` and `encode`."""
        self.read(text, field=field)
        self._check_beginning(text, field)
        return self._checked(self._tokenizer.encode(text), field, "what the tokenizer adds")

    def ids(self, said: Said, objective: str | None = None, *, field: str = "prompt") -> list[int]:
        """As `base` or an objective reads it, whatever its length."""
        own = None if objective is None else self._spec.prompts.get(objective)
        if self._chat is None:
            assert isinstance(said, str)  # there are no chats without a template for them
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
        """What the template takes by itself, or an objective's prompt. Raises BundleError."""
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
        """Refuse a text that is far too long by its beginning: what is refused costs no more than what is read. Of a
        beginning with twice the tokens that are allowed no text can be within the limit."""
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
    """With an objective's sentence in the system message, behind what a client wrote there."""
    first, *rest = messages
    if first.role != "system":
        return (Message("system", sentence), *messages)
    return (Message("system", f"{first.text}\n\n{sentence}" if first.text.strip() else sentence), *rest)


def _check_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{field} holds half a surrogate pair; allowed: Unicode text", param=field) from None
