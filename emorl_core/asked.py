"""A caller's prompt, chat or token ids -> the token ids that the lanes with weight read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from emorl_core.errors import InvalidRequest, PromptTooLong, shown
from emorl_core.text.chat import Message
from emorl_core.text.prompts import Encoded, PromptEncoder, Said
from emorl_core.types import Combine, Sampling

Messages = Sequence[Message | Mapping[str, Any]]
Asked = tuple[str, Said | Sequence[int]]  # the field's name, and its text, messages or token ids


class Reader:
    """Safe to call from several threads."""

    def __init__(self, prompts: PromptEncoder, *, vocab_size: int, most: int, context: int | None) -> None:
        """most: tokens of a prompt; context: tokens of prompt and reply together that the base takes, None: any."""
        self._prompts = prompts
        self._vocab_size, self._most, self._context = vocab_size, most, context

    def read(self, prompt: str | Sequence[int] | None, messages: Messages | None, field: str) -> Asked:
        """The field that is given, exactly one of the two, parsed. Raises as `PromptEncoder.read` and `read_chat`."""
        if (prompt is None) == (messages is None):
            raise InvalidRequest("give exactly one of prompt and messages", param=field)
        if messages is not None:
            return "messages", self._prompts.read_chat(messages)
        assert prompt is not None  # one of the two is there
        return field, self._prompts.read(prompt, field=field) if isinstance(prompt, str) else prompt

    def read_all(
        self,
        prompts: str | Sequence[str] | None,
        messages: Messages | None,
        chats: Sequence[Messages] | None,
    ) -> list[Asked]:
        """The field that is given, exactly one of the three, as a list of prompts or chats. Raises as `read`."""
        if [prompts, messages, chats].count(None) != 2:
            raise InvalidRequest("give exactly one of prompts, messages and chats", param="prompts")
        if chats is not None:
            if not chats:
                raise InvalidRequest("chats is empty; allowed: at least one chat", param="chats")
            return [(f"chats.{i}", self._prompts.read_chat(chat, field=f"chats.{i}")) for i, chat in enumerate(chats)]
        if prompts is None or isinstance(prompts, str):
            return [self.read(prompts, messages, "prompt")]
        return [(f"prompts.{i}", said) for i, said in enumerate(self._prompts.read_all(prompts))]

    def encode(self, asked: Asked, vectors: Iterable[Sequence[float]], combine: Combine) -> Encoded:
        """The token ids that the lanes with weight in any of the vectors read.

        Raises InvalidRequest where the prompt of an objective with weight would be ignored, and PromptTooLong.
        """
        field, said = asked
        lanes = {i for vector in vectors for i, weight in enumerate(vector) if weight}
        own = self._prompts.prompted(lanes)
        if own and combine == "weights":
            raise InvalidRequest(
                f"combine is 'weights', which sums adapters under one prompt, and objective {own[0]!r} has a prompt of"
                " its own; allowed with it: hidden, probs",
                param="combine",
            )
        if isinstance(said, str) or (said and isinstance(said[0], Message)):
            text = cast("Said", said)
            return Encoded(
                self._prompts.encode(text, field=field), self._prompts.lane_prompts(text, lanes, field=field)
            )
        if own:
            raise InvalidRequest(
                f"{field} is read as it is, and objective {own[0]!r} has a prompt of its own, which would be left out;"
                " allowed: text in the bundle's template, or no weight for that objective",
                param=field,
            )
        return Encoded(self._checked_ids(cast("Sequence[int]", said), field))

    def fitted(self, encoded: Encoded, sampling: Sampling) -> Sampling:
        """With `max_new_tokens` reduced to what the context leaves, if it leaves any."""
        room = sampling.max_new_tokens if self._context is None else self._context - encoded.longest
        return replace(sampling, max_new_tokens=room) if 0 < room < sampling.max_new_tokens else sampling

    def check_context(self, encoded: Encoded, sampling: Sampling, field: str) -> None:
        """Raises PromptTooLong where prompt and new tokens together do not fit into the base's context."""
        context, tokens = self._context, encoded.longest
        if context is not None and tokens + sampling.max_new_tokens > context:
            raise PromptTooLong(
                f"{field} has {tokens} tokens and max_new_tokens is {shown(sampling.max_new_tokens)}; allowed: up to"
                f" {context} together (the context of the base model)",
                param=field,
            )

    def _checked_ids(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        size, most = self._vocab_size, self._most
        for token in ids:
            if not 0 <= token < size:
                raise InvalidRequest(f"{field} has the token id {token}; allowed: 0 to {size - 1}", param=field)
        if not 0 < len(ids) <= most:
            raise PromptTooLong(
                f"{field} has {len(ids)} tokens; allowed: 1 to {most} (max_source_tokens of the bundle)", param=field
            )
        return tuple(ids)
