"""How prompts are presented to a base: in a template, or as chats through the base's own chat template."""

from __future__ import annotations

from functools import partial

from emorl_core.bundles.bundle import ChatSpec, SystemMessage, split_template
from emorl_core.kinds import Section
from emorl_core.text.chat import Chat, Message
from emorl_core.text.tokenizer import Tokenizer
from training.data.prompts import Encode


class ChatSettings(Section):
    """Prompts as chats in the base's chat template: each prompt is a user message."""

    system: SystemMessage | None = None
    """System message before every prompt; null: none."""

    def spec(self) -> ChatSpec:
        """The settings in the bundle's form."""
        return ChatSpec(system=self.system)


def template_or_chat(template: str, chat: ChatSettings | None, tokenizer: Tokenizer) -> Encode:
    """Encodes prompts to the same ids as a server of the bundle.

    Raises:
        BundleError: the tokenizer has no usable chat template.
    """
    if chat is not None:
        return partial(_in_chat, tokenizer.chat(chat.system))
    before, after = split_template(template)
    return partial(tokenizer.encode_prompt, before=before, after=after)


def _in_chat(chat: Chat, prompt: str) -> list[int]:
    return chat.encode([Message("user", prompt)])
