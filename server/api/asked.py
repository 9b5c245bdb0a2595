"""What a request of the native API asks about: prompts, or a chat."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from emorl_core.errors import InvalidRequest
from emorl_core.text import chat
from server.api.fields import Body, FirstFault, Text, Texts
from server.api.openai.messages import Message, chat_of
from server.door.errors import MissingField


class ChatField(Body):
    """A request that may be about a chat."""

    messages: Annotated[list[Message], FirstFault(), Field(min_length=1)] | None = Field(
        None, description="Instead: a chat as in /v1/chat/completions, for a bundle with chat."
    )

    @property
    def chat(self) -> list[chat.Message] | None:
        return None if self.messages is None else chat_of(self.messages)

    def check_one(self, other: str) -> None:
        """Raises InvalidRequest unless exactly one of `messages` and the field `other` is there."""
        value = getattr(self, other)
        if value is None and self.messages is None:
            raise MissingField(f"{other}: missing; exactly one of {other} and messages is required", param=other)
        if value is not None and self.messages is not None:
            raise InvalidRequest(f"give exactly one of {other} and messages", param="messages")


class PromptFields(ChatField):
    """Of requests about one prompt."""

    prompt: Text | None = Field(
        None, description="What the client said; the bundle's template is put around it, or it is a chat's only turn."
    )

    @model_validator(mode="after")
    def _one(self) -> PromptFields:
        self.check_one("prompt")
        return self


class PromptsFields(ChatField):
    """Of requests about several prompts, or one chat."""

    prompts: Texts | None = Field(None, description="What the clients said, one by one, each as a `prompt`.")

    @model_validator(mode="after")
    def _one(self) -> PromptsFields:
        self.check_one("prompts")
        return self

    @property
    def count(self) -> int:
        """Of prompts, a chat being one."""
        return 1 if self.prompts is None else len(self.prompts)
