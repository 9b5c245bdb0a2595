"""How prompts are put to a base: in a template, or as chats through the base's own chat template."""

from __future__ import annotations

from functools import partial

from pydantic import field_validator

from emorl_core.bundle import ChatSpec, split_template
from emorl_core.text.chat import Chat, Message
from emorl_core.text.tokenizer import Tokenizer
from training.config import Section
from training.data.prompts import Encode


class ChatSettings(Section):
    """Prompts as chats, through the chat template of the base's tokenizer: the prompt is the user's message."""

    system: str | None = None
    """The system message before every prompt; null: none."""

    @field_validator("system")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must be a text; leave it out for chats without a system message")
        return value

    def spec(self) -> ChatSpec:
        """As a bundle has it."""
        return ChatSpec(system=self.system)


def template_or_chat(template: str, chat: ChatSettings | None, tokenizer: Tokenizer) -> Encode:
    """Prompts as ids, the same as a server of the bundle makes of them.

    Raises:
        BundleError: the tokenizer has no chat template that can be used.
    """
    if chat is not None:
        return partial(_in_chat, tokenizer.chat(chat.system))
    before, after = split_template(template)
    return partial(tokenizer.encode_prompt, before=before, after=after)


def _in_chat(chat: Chat, prompt: str) -> list[int]:
    return chat.encode([Message("user", prompt)])
