"""Completions -> the bodies and chunks of the OpenAI endpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from emorl_core.errors import EmorlError
from emorl_core.frontend import Frontend
from emorl_core.types import Completion, Event, TokenEvent
from server.api.openai.logprobs import NamedToken, TokenNames, chat_logprobs, completion_logprobs
from server.door.errors import error_object
from server.serving import sse
from server.serving.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Head:
    """The fields shared by all bodies and chunks of one answer. `index_of`: engine request id -> index of its
    choice."""

    id: str
    model: str
    created: int
    index_of: dict[str, int]
    ensemble: Frontend
    receipt_of: Callable[[int, Completion], Receipt] | None = None  # index of the choice, its completion
    scores_of: Callable[[Sequence[Completion]], Awaitable[list[dict[str, Any]]]] | None = None  # of all choices

    def names(self) -> TokenNames:
        """For the tokens of one choice."""
        return TokenNames(self.ensemble.tokenizer)

    def of(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(completions: Sequence[Completion], choices_per_prompt: int) -> dict[str, int]:
    """A prompt counts once, however many choices it has."""
    prompt = sum(completion.prompt_tokens for completion in completions[::choices_per_prompt])
    generated = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def steering_of(head: Head, completions: Sequence[Completion]) -> dict[str, Any]:
    """The extension field `emorl`: the resolved weights and the seeds, with which a text can be made again."""
    first = completions[0]
    steering: dict[str, Any] = {
        "weights": first.weights,
        "profile": first.profile,
        "seeds": [each.seed for each in completions],
    }
    if head.receipt_of is not None:
        receipts = [head.receipt_of(head.index_of[each.request_id], each) for each in completions]
        steering["receipts"] = [receipt.model_dump(mode="json") for receipt in receipts]
    return steering


async def with_scores(head: Head, body: dict[str, Any], completions: Sequence[Completion]) -> dict[str, Any]:
    """The body of an answer, with its choices' scores if requested."""
    if head.scores_of is not None:
        body["emorl"]["scores"] = await head.scores_of(completions)
    return body


# --- /v1/completions -------------------------------------------------------------------------------------------------


def text_completion(
    head: Head, completions: Sequence[Completion], choices_per_prompt: int, echoes: Sequence[str], with_logprobs: bool
) -> dict[str, Any]:
    choices = []
    for index, (completion, echo) in enumerate(zip(completions, echoes, strict=True)):
        logprobs = None
        if with_logprobs:
            logprobs = completion_logprobs(head.names().of_completion(completion))
        choices.append(
            {
                "index": index,
                "text": echo + completion.text,
                "logprobs": logprobs,
                "finish_reason": completion.finish_reason.value,
            }
        )
    return {
        **head.of("text_completion"),
        "choices": choices,
        "usage": usage_of(completions, choices_per_prompt),
        "emorl": steering_of(head, completions),
    }


# --- /v1/chat/completions --------------------------------------------------------------------------------------------


def chat_completion(head: Head, completions: Sequence[Completion], with_logprobs: bool) -> dict[str, Any]:
    choices = []
    for index, completion in enumerate(completions):
        logprobs = None
        if with_logprobs:
            logprobs = chat_logprobs(head.names().of_completion(completion))
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": logprobs,
                "finish_reason": completion.finish_reason.value,
            }
        )
    return {
        **head.of("chat.completion"),
        "choices": choices,
        "usage": usage_of(completions, len(completions)),
        "emorl": steering_of(head, completions),
    }


# --- streams ---------------------------------------------------------------------------------------------------------


@dataclass
class OpenAIDialect(ABC):
    """Shared by both streams: chunks per choice, a last chunk with the finish reason, and usage if requested."""

    head: Head
    choices_per_prompt: int
    include_usage: bool
    with_logprobs: bool
    completions: dict[int, Completion] = field(default_factory=dict)
    names: dict[int, TokenNames] = field(default_factory=dict)  # per choice, once it has started
    scores: list[dict[str, Any]] | None = None  # per choice, if requested

    kind: ClassVar[str]

    def chunk(
        self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None, ended: Completion | None = None
    ) -> bytes:
        payload = {**self.head.of(self.kind), "choices": choices}
        if ended is not None:
            payload["emorl"] = steering_of(self.head, [ended])
        if self.include_usage:
            payload["usage"] = usage
        return sse.data(payload)

    def event(self, event: Event) -> bytes:
        index = self.head.index_of[event.request_id]
        if isinstance(event, Completion):
            self.completions[index] = event
            return self.chunk([self.last(index, event.finish_reason.value)], ended=event)
        assert isinstance(event, TokenEvent)
        if not event.text and not self.with_logprobs:
            return b""  # half a character, or the end of the sequence
        return self.chunk([self.piece(index, event)])

    def named(self, index: int, event: TokenEvent) -> list[NamedToken]:
        return self.names.setdefault(index, self.head.names()).of_event(event)

    @abstractmethod
    def begin(self) -> bytes:
        """Chunks before the first event."""

    @abstractmethod
    def piece(self, index: int, event: TokenEvent) -> dict[str, Any]:
        """A choice in a chunk with more text."""

    @abstractmethod
    def last(self, index: int, reason: str) -> dict[str, Any]:
        """A choice in its last chunk."""

    def failed(self, error: EmorlError) -> bytes:
        return sse.data({"error": error_object(error)})

    @property
    def in_order(self) -> list[Completion]:
        return [self.completions[index] for index in sorted(self.completions)]

    async def settle(self) -> None:
        if self.head.scores_of is not None:
            self.scores = await self.head.scores_of(self.in_order)

    def end(self) -> bytes:
        last = b""
        if self.scores is not None:
            steering = {**steering_of(self.head, self.in_order), "scores": self.scores}
            last = sse.data({**self.head.of(self.kind), "choices": [], "emorl": steering})
        if self.include_usage:
            last += self.chunk([], usage_of(self.in_order, self.choices_per_prompt))
        return last


@dataclass
class CompletionDialect(OpenAIDialect):
    """Chunks of `/v1/completions`. `echoes`: one per choice, put before its first text."""

    echoes: Sequence[str] = ()

    kind: ClassVar[str] = "text_completion"

    def begin(self) -> bytes:
        return b"".join(
            self.chunk([{"index": index, "text": echo, "logprobs": None, "finish_reason": None}])
            for index, echo in enumerate(self.echoes)
            if echo
        )

    def piece(self, index: int, event: TokenEvent) -> dict[str, Any]:
        logprobs = None
        if self.with_logprobs:
            logprobs = completion_logprobs(self.named(index, event))
        return {"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}

    def last(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


@dataclass
class ChatDialect(OpenAIDialect):
    """Chunks of `/v1/chat/completions`: the role first, then content, then the reason."""

    kind: ClassVar[str] = "chat.completion.chunk"

    def begin(self) -> bytes:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(
            self.chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in sorted(self.head.index_of.values())
        )

    def piece(self, index: int, event: TokenEvent) -> dict[str, Any]:
        logprobs = None
        if self.with_logprobs:
            logprobs = chat_logprobs(self.named(index, event))
        return {"index": index, "delta": {"content": event.text}, "logprobs": logprobs, "finish_reason": None}

    def last(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}
