"""Chats -> token ids, through the base model's chat template.

The template comes with the model: it writes control tokens, and often a default system prompt. Clients' messages stay
plain text, and the default system prompt is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from emorl_core.errors import BundleError, InvalidRequest
from emorl_core.text.control_tokens import ChatEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
# Mark client text that would be read as a control token. These are Unicode noncharacters.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
# Texts for probing a template: no template contains them, and they have no common prefix or suffix.
_SYSTEM, _USER, _REPLY = "\ufdd2s\ufdd3", "\ufdd4u\ufdd5", "\ufdd6a\ufdd7"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. A system message comes first or not at all; the last message is the user's."""

    role: Role
    text: str


def statement(text: str) -> tuple[Message]:
    """A single prompt as a chat."""
    return (Message("user", text),)


def last_said(messages: Sequence[Message]) -> str:
    """The last user message, or an empty text."""
    return next((each.text for each in reversed(messages) if each.role == "user"), "")


def read_messages(messages: Sequence[Message | Mapping[str, Any]], *, field: str = "messages") -> tuple[Message, ...]:
    """Messages as chat clients write them: `role`, and `content` as text or a list of parts `{type: text, text: …}`,
    which are joined.

    Raises:
        InvalidRequest: the first fault, by its place.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest(f"{field} is no list of messages; allowed: at least one", param=field)
    read = tuple(_message(message, f"{field}.{i}") for i, message in enumerate(messages))
    for i, message in enumerate(read[1:], start=1):
        if message.role == "system":
            raise InvalidRequest(
                f"{field}.{i} is a system message; allowed: as the first one only", param=f"{field}.{i}.role"
            )
    last = len(read) - 1
    if read[last].role != "user":
        raise InvalidRequest(
            f"{field}.{last}.role is {read[last].role!r}; allowed for the last message: user, whom the reply is for",
            param=f"{field}.{last}.role",
        )
    return read


def _message(message: Message | Mapping[str, Any], field: str) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{field} is no message; allowed: role and content", param=field)
    if set(message) - {"role", "content"}:
        raise InvalidRequest(f"{field} has further fields; allowed: role and content", param=field)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidRequest(f"{field}.role is unknown; allowed: {', '.join(ROLES)}", param=f"{field}.role")
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, Sequence) or not content:
        raise InvalidRequest(
            f"{field}.content is no text; allowed: text, or a list of text parts", param=f"{field}.content"
        )
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{field}.content.{i} is no text part; allowed: type text, and its text", param=f"{field}.content.{i}"
            )
        texts.append(part["text"])
    return Message(role, "".join(texts))


class Chat(Protocol):
    """What turns chats into token ids, for one bundle."""

    def encode(self, messages: Sequence[Message], *, field: str = "messages") -> list[int]:
        """Token ids up to the start of the reply. Raises InvalidRequest for messages that the template does not
        accept."""

    def header(self) -> list[int]:
        """The generation prompt at the end of a chat; may be empty."""


class ChatTemplate:
    """The `Chat` of a tokenizer that has a template. Safe to call from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None) -> None:
        """system: the system message of chats without one; None: none.

        Raises:
            BundleError: there is no template, it cannot be used, or its default system prompt cannot be removed.
        """
        if not tokenizer.is_fast or not tokenizer.chat_template:
            raise BundleError("chat is set and the base's tokenizer has no chat template; leave chat out", param="chat")
        self._tokenizer = tokenizer
        self._source = str(tokenizer.get_chat_template())
        special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
        self._encoder = ChatEncoder(tokenizer.backend_tokenizer, special, unknown, self._source)
        self._system = system
        self._end_of_system = ""  # what ends a system message, where one is to be cut out
        try:
            plain = self._rendered([Message("user", _USER)])
        except InvalidRequest as error:
            raise BundleError(f"chat is set, but {error.message}", param="chat") from None
        self._hides_one = self._adds_system(plain)
        if self._hides_one and system is None:
            self._end_of_system = self._find_end()

    def encode(self, messages: Sequence[Message], *, field: str = "messages") -> list[int]:
        """Token ids up to the start of the reply.

        Raises:
            InvalidRequest: the template does not take these messages.
        """
        if messages[0].role != "system" and self._system is not None:
            messages = [Message("system", self._system), *messages]
        marked = [Message(message.role, self._marked(message.text)) for message in messages]
        return self._encoder.encode_chat(*_unmarked(self._whole(marked, field)))

    def header(self) -> list[int]:
        said = [Message("user", _USER)]
        bare, begun = self._rendered(said, reply=False), self._rendered(said)
        return self._encoder.encode_chat(begun[len(bare) :] if begun.startswith(bare) else "", [])

    def encode_reply(self, text: str) -> list[int]:
        """A reply as the template writes it, from where `encode` ends to the end of the turn and beyond.

        Raises:
            BundleError: the template does not write replies.
        """
        said, reply = Message("user", _USER), Message("assistant", _REPLY)
        try:
            begun, finished = self._rendered([said]), self._rendered([said, reply], reply=False)
        except InvalidRequest as error:
            raise BundleError(f"chat is set, but {error.message}", param="chat") from None
        before, found, after = finished.rpartition(_REPLY)
        if not found:
            raise BundleError("chat is set, but the base's chat template does not write replies", param="chat")
        # A template may write more before a finished reply than before one to be generated: empty thoughts, for
        # example.
        lead = before.removeprefix(begun) if before.startswith(begun) else ""
        return self._encoder.encode_chat(*_unmarked(lead + self._marked(text) + after))

    def _whole(self, messages: Sequence[Message], field: str) -> str:
        """Render messages without the default system prompt."""
        if messages[0].role == "system" or not self._hides_one:
            return self._rendered(messages, field)
        rendered = self._rendered([Message("system", _SYSTEM), *messages], field)
        before, _, after = rendered.partition(_SYSTEM)
        return self._beginning(before) + after.removeprefix(self._end_of_system)

    def _beginning(self, text: str) -> str:
        """The template's text before all messages."""
        start = self._tokenizer.bos_token
        return start if isinstance(start, str) and text.startswith(start) else ""

    def _adds_system(self, plain: str) -> bool:
        """Whether the template adds a default system prompt to a chat without one."""
        try:
            explicit = self._rendered([Message("system", _SYSTEM), Message("user", _USER)])
        except InvalidRequest:
            return False  # it has no place for a system prompt
        before, _, after = explicit.partition(_SYSTEM)
        head = _common(before, plain)
        tail = _common(after[::-1], plain[::-1])
        return head + tail < len(plain)

    def _find_end(self) -> str:
        """The text that ends a message, verified on a chat of several turns."""
        system, user, reply = Message("system", _SYSTEM), Message("user", _USER), Message("assistant", _REPLY)
        try:
            end = self._rendered([system, user, reply], reply=False).rpartition(_REPLY)[2]
            next_turn = self._rendered([system, user, reply, user]).rpartition(_REPLY)[2]
            _, found, after = self._rendered([system, user]).partition(_SYSTEM)
        except InvalidRequest as error:
            raise BundleError(f"chat is set, but {error.message}", param="chat") from None
        # Once the system message is cut out, the user's first turn must look like a later one.
        if not (found and end and after.startswith(end) and next_turn == after):
            raise BundleError(
                "the base's chat template adds a system prompt of its own that cannot be cut out; give chat.system",
                param="chat.system",
            )
        return end

    def _rendered(self, messages: Sequence[Message], field: str = "messages", *, reply: bool = True) -> str:
        from jinja2.exceptions import TemplateError

        conversation = [{"role": message.role, "content": message.text} for message in messages]
        try:
            rendered = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=reply)
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            # A template's errors may contain anything; only text from the template itself is passed on.
            said = " ".join(str(error).split())
            reason = f": {said}" if said and said in self._source else ""
            raise InvalidRequest(
                f"{field}: the base's chat template does not take this order of messages{reason}", param=field
            ) from None
        return str(rendered)

    def _marked(self, text: str) -> str:
        """The text with marks around everything that the tokenizer would read as a control token."""
        text = text.replace(_OPEN, "").replace(_CLOSE, "")
        parts, at = [], 0
        for start, end in self._encoder.names(text):
            parts += [text[at:start], _OPEN, text[start:end], _CLOSE]
            at = end
        return "".join([*parts, text[at:]])


def _unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the positions of the marked parts."""
    parts, spans, length = [], [], 0
    for i, part in enumerate(text.replace(_CLOSE, _OPEN).split(_OPEN)):
        if i % 2:
            spans.append((length, length + len(part)))
        parts.append(part)
        length += len(part)
    return "".join(parts), spans


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))
