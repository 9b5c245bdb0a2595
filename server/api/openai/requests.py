"""The requests of the OpenAI endpoints. A field that is not implemented is refused by name, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, Tag, model_validator

from emorl_core.errors import InvalidRequest
from emorl_core.types import MAX_SEED
from server.api.fields import (
    Body,
    FirstFault,
    Int,
    LogitBias,
    MinP,
    Penalty,
    Seed,
    StopString,
    Subtracted,
    Temperature,
    Text,
    Texts,
    TopP,
    Weights,
    example,
)
from server.api.openai.fields import Empty, Null, Off, one_of, text_or_list
from server.api.openai.messages import Message

Stop = Annotated[
    Annotated[StopString, Tag("text")] | Annotated[list[StopString], Field(max_length=4), Tag("list")],
    one_of(text_or_list, "text, or a list of up to 4 texts"),
]


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="One more chunk with the usage before the stream ends.")
    include_obfuscation: Annotated[Any, Off(None, False)] = None


class OpenAIRequest(Body):
    """Fields shared by both endpoints."""

    # The engine's name of a field -> this API's name, for messages.
    names: ClassVar[dict[str, str]] = {"weights": "objective_weights", "max_new_tokens": "max_tokens"}

    model: Text = Field(description="The bundle's name, or bundle:profile.")
    temperature: Temperature | None = Field(None, description="Default 1; 0 is greedy.")
    top_p: TopP | None = Field(None, description="Default 1.")
    presence_penalty: Subtracted | None = Field(None, description="Subtracted from logits of used tokens; default 0.")
    frequency_penalty: Subtracted | None = Field(None, description="Subtracted once per occurrence; default 0.")
    logit_bias: LogitBias | None = Field(None, description="Token id -> number added to its logit.")
    n: Int | None = Field(None, ge=1, le=128, description="Completions per prompt; the server's limit is in /info.")
    seed: Seed | None = Field(None, description="Choice i uses seed + i; null: drawn and reported.")
    stop: Stop | None = Field(None, description="Up to 4 texts that end a completion; never part of it.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Of a stream; `include_usage`: one more chunk.")
    user: Text | None = Field(None, description="Accepted for compatibility; neither used nor logged.")
    objective_weights: Weights | None = Field(None, description="Objective -> number. Not in OpenAI's API.")
    profile: Text | None = Field(None, description="A profile instead of weights. Not in OpenAI's API.")
    normalize: bool = Field(True, description="Scale the weights to sum 1. Not in OpenAI's API.")
    top_k: Int = Field(0, ge=0, description="0 is off. Not in OpenAI's API.")
    repetition_penalty: Penalty = Field(1.0, description="1 is off. Not in OpenAI's API.")
    min_p: MinP = Field(0.0, description="0 is off. Not in OpenAI's API.")
    no_repeat_ngram_size: Int = Field(0, ge=0, description="0 is off. Not in OpenAI's API.")
    receipt: bool = Field(False, description="Give a receipt per choice in `emorl`. Not in OpenAI's API.")

    score: bool = Field(False, description="Give each choice's scores in `emorl`. Not in OpenAI's API.")

    metadata: Annotated[Any, Off(None, {})] = None
    service_tier: Annotated[Any, Off(None, "auto", "default")] = None
    store: Annotated[Any, Off(None, False)] = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> OpenAIRequest:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only for stream: true", param="stream_options")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, max_new_tokens: int, choice: int) -> dict[str, Any]:
        """The arguments of `Frontend.request` for choice number `choice`."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "max_new_tokens": max_new_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "min_p": self.min_p,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "logit_bias": self.logit_bias,
            "seed": None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1),
            "stop": tuple(stop),
        }


TokenIds = Annotated[list[Annotated[Int, Field(ge=0)]], FirstFault(), Field(min_length=1)]


def _prompt_shape(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, (int, float)) and not isinstance(first, bool):
        return "ids"
    return "texts" if isinstance(first, str) else "id lists" if isinstance(first, list) else None


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TokenIds], FirstFault(), Field(min_length=1), Tag("id lists")],
    one_of(_prompt_shape, "text, a list of texts, a list of token ids, or a list of such lists; not empty"),
]


class CompletionRequest(OpenAIRequest):
    """`POST /v1/completions`. A text gets the bundle's prompt template, or none for a bundle with chat; token ids are
    taken as they are."""

    model_config = example(model="counselor-demo:balanced", prompt="I can't keep up at work.", max_tokens=48)

    prompt: Prompt = Field(description="One or several; token ids are taken as they are.")
    max_tokens: Int | None = Field(None, ge=1, description="Default 16.")
    echo: bool | None = Field(None, description="Put the prompt before each completion; not with logprobs.")
    logprobs: Int | None = Field(None, ge=0, le=5, description="Log-probabilities, with this many alternatives.")

    best_of: Annotated[Any, Off(None, 1)] = None
    suffix: Annotated[Any, Off(None, "")] = None

    @model_validator(mode="after")
    def _no_logprobs_of_the_prompt(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "echo with logprobs is not implemented: the encoder gives its prompt no probabilities", param="echo"
            )
        return self

    @property
    def prompts(self) -> list[tuple[str, str | list[int]]]:
        """Every prompt with its field's name."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [("prompt", prompt)]
        if isinstance(prompt[0], int):
            return [("prompt", prompt)]
        return [(f"prompt.{i}", each) for i, each in enumerate(cast("list[str | list[int]]", prompt))]


class ChatRequest(OpenAIRequest):
    """`POST /v1/chat/completions`.

    A bundle with chat answers the whole chat, in its base's chat template; its own system message is used for chats
    without one. Any other bundle answers one user message, in its prompt template; messages that would not reach the
    model (system messages, earlier turns) are refused.
    """

    model_config = example(
        model="counselor-demo",
        messages=[{"role": "user", "content": "I can't keep up at work."}],
        objective_weights={"reflection": 0.7, "empathy": 0.3},
    )

    messages: Annotated[list[Message], FirstFault()] = Field(
        min_length=1, description="The chat. For a bundle without chat: one user message; others may only be empty."
    )
    max_tokens: Int | None = Field(None, ge=1, description="Default: the server's limit, or what the context leaves.")
    max_completion_tokens: Int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens.")
    top_logprobs: Int | None = Field(
        None, ge=0, le=20, description="With this many alternatives; needs logprobs: true."
    )

    audio: Null = None
    function_call: Annotated[Any, Off(None, "none")] = None
    functions: Empty = None
    modalities: Annotated[Any, Off(None, ["text"])] = None
    moderation: Null = None
    parallel_tool_calls: Annotated[Any, Off(None, False, True)] = None
    prediction: Null = None
    prompt_cache_key: Null = None
    prompt_cache_options: Null = None
    prompt_cache_retention: Null = None
    reasoning_effort: Annotated[Any, Off(None, "none")] = None
    response_format: Annotated[Any, Off(None, {"type": "text"})] = None
    safety_identifier: Null = None
    tool_choice: Annotated[Any, Off(None, "none")] = None
    tools: Empty = None
    verbosity: Null = None
    web_search_options: Null = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only for logprobs: true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ; give one of them", param="max_completion_tokens"
            )
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """The field that limits the number of tokens, and its value."""
        if self.max_tokens is None and self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens
