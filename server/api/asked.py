"""The prompt fields of the native API's requests: prompts or chats."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from emorl_core.errors import InvalidRequest
from emorl_core.text import chat
from server.api.fields import Body, FirstFault, Text, Texts
from server.api.openai.messages import Message, chat_of
from server.door.errors import MissingField

Conversation = tuple[chat.Message, ...]
Chat = Annotated[list[Message], FirstFault(), Field(min_length=1)]
Chats = Annotated[list[Chat], FirstFault(), Field(min_length=1)]


class ChatField(Body):
    """A request that may contain a chat."""

    messages: Chat | None = Field(
        None, description="Instead: a chat as in /v1/chat/completions, for a bundle with chat."
    )

    @property
    def chat(self) -> list[chat.Message] | None:
        return None if self.messages is None else chat_of(self.messages)

    @property
    def said(self) -> list[Conversation]:
        """Every conversation in the request; a prompt counts as one user message."""
        return [] if self.chat is None else [tuple(self.chat)]

    def check_one(self, *names: str) -> None:
        """Raises InvalidRequest unless exactly one of these fields is given."""
        *others, last = names
        listed = f"{', '.join(others)} and {last}"
        given = [name for name in names if getattr(self, name) is not None]
        if not given:
            raise MissingField(f"{names[0]}: missing; exactly one of {listed} is required", param=names[0])
        if len(given) > 1:
            raise InvalidRequest(f"give exactly one of {listed}", param=given[-1])


class PromptFields(ChatField):
    """Fields of requests about one prompt."""

    prompt: Text | None = Field(
        None, description="What the client said; the bundle's template is put around it, or it is a chat's only turn."
    )

    @model_validator(mode="after")
    def _one(self) -> PromptFields:
        self.check_one("prompt", "messages")
        return self

    @property
    def said(self) -> list[Conversation]:
        return [chat.statement(self.prompt)] if self.prompt is not None else super().said


class PromptsFields(ChatField):
    """Fields of requests about several prompts or chats."""

    prompts: Texts | None = Field(None, description="What the clients said, one by one, each as a `prompt`.")
    chats: Chats | None = Field(None, description="Instead: several chats, each a list as `messages` is one.")

    @model_validator(mode="after")
    def _one(self) -> PromptsFields:
        self.check_one("prompts", "messages", "chats")
        return self

    @property
    def every_chat(self) -> list[list[chat.Message]] | None:
        return None if self.chats is None else [chat_of(each) for each in self.chats]

    @property
    def said(self) -> list[Conversation]:
        alone = [chat.statement(each) for each in self.prompts or ()]
        return alone + [tuple(each) for each in self.every_chat or ()] + super().said

    @property
    def count(self) -> int:
        """Of prompts or chats."""
        return len(self.prompts or self.chats or [self.messages])
