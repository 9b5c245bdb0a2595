"""Chat messages as OpenAI's clients send them, and the one that a bundle without chat can answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from emorl_core.errors import InvalidRequest
from emorl_core.text import chat
from server.api.fields import Body, FirstFault, Text
from server.api.openai.fields import Empty, Null, Off, one_of, text_or_list

Caching = Annotated[dict[str, Any] | None, Field(description="Accepted: how a prompt is cached changes no text.")]


class TextPart(Body):
    type: Literal["text"]
    text: Text
    cache_control: Caching = None
    prompt_cache_breakpoint: Caching = None

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type", "text") != "text":
            raise PydanticCustomError("shape", "must be a part of type text; other types are not implemented")
        return data


Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[TextPart], FirstFault(), Field(min_length=1), Tag("list")],
    one_of(text_or_list, "text, or a list of parts of type text"),
]


class Message(Body):
    """One message. Clients put every field of an answer into the history; fields with content that is not implemented
    are refused by name."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = Field(None, validate_default=True, description="Null only from an assistant.")
    name: Text | None = Field(None, description="Accepted for compatibility; not used.")
    id: Text | None = Field(None, description="Accepted for compatibility; not used.")
    refusal: Annotated[Any, Off(None, "")] = None
    annotations: Empty = None
    audio: Null = None
    content_parts: Empty = None
    function_call: Null = None
    parsed: Null = None
    tool_calls: Empty = None

    @field_validator("content")
    @classmethod
    def _only_an_assistant_says_nothing(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticKnownError("missing")
        return content

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


def chat_of(messages: Sequence[Message]) -> list[chat.Message]:
    """For a bundle with chat. The role `developer` of OpenAI's newer models is a system message."""
    return [
        chat.Message("system" if message.role == "developer" else message.role, message.text) for message in messages
    ]


def single_statement(messages: Sequence[Message]) -> tuple[str, str]:
    """The one user message that a bundle without chat can answer: its field and its text.

    Raises `InvalidRequest` naming the first message that would be ignored.
    """
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if not users:
        raise InvalidRequest("messages: there is no user message; it is what is answered", param="messages")
    for i, message in enumerate(messages):
        if i != users[-1] and message.text.strip():
            raise InvalidRequest(
                f"messages.{i}: a {message.role} message beside the one that is answered would not be used: this bundle"
                " has no chat template; allowed: one user message",
                param=f"messages.{i}",
            )
    return f"messages.{users[-1]}.content", messages[users[-1]].text
