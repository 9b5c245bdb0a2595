"""The requests of the OpenAI endpoints. A field that is not implemented is refused by name, never ignored.

Clients send many such fields with the value that changes nothing (`"n": 1`, `"logit_bias": null`). That value, and no
other, is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from emorl_core.errors import InvalidRequest
from emorl_core.types import MAX_SEED
from server.api.fields import Int, StopString, Strict, Text, Weight

_OFF: dict[str, tuple[Any, ...]] = {
    # Both endpoints. The value(s) that change nothing:
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "service_tier": (None, "auto", "default"),
    "metadata": (None, {}),
    "store": (None, False),
}
_OFF_COMPLETIONS = {**_OFF, "best_of": (None, 1), "suffix": (None, "")}
_OFF_CHAT = {
    **_OFF,
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, False, True),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "safety_identifier": (None,),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}


def _document(off: dict[str, tuple[Any, ...]], example: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Add to a JSON schema an example, and the fields that are not implemented with the values that are accepted."""

    def extend(schema: dict[str, Any]) -> None:
        schema["examples"] = [example]
        for name, values in off.items():
            schema["properties"][name] = {"enum": list(values), "description": "Not implemented: only its off value."}

    return extend


class StreamOptions(Strict):
    include_usage: bool = Field(False, description="One more chunk with the usage before the stream ends.")


class OpenAIRequest(Strict):
    """What both endpoints share."""

    off: ClassVar[dict[str, tuple[Any, ...]]] = _OFF
    # What the engine calls a field -> what this API calls it, for messages.
    names: ClassVar[dict[str, str]] = {"weights": "objective_weights", "max_new_tokens": "max_tokens"}

    model: Text = Field(description="The bundle's name, or bundle:profile.")
    temperature: float | None = Field(None, ge=0.0, le=100.0, description="Default 1; 0 is greedy.")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description="Default 1.")
    n: Int | None = Field(None, ge=1, le=128, description="Completions per prompt; the server's limit is in /info.")
    seed: Int | None = Field(None, ge=0, le=MAX_SEED, description="Choice i uses seed + i; null: drawn and reported.")
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = Field(
        None, description="Up to 4 texts that end a completion; never part of it."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Accepted for compatibility; neither used nor logged.")
    objective_weights: dict[str, Weight] | None = Field(None, description="Objective -> number. Not in OpenAI's API.")
    profile: Text | None = Field(None, description="A profile instead of weights. Not in OpenAI's API.")
    normalize: bool = Field(True, description="Scale the weights to sum 1. Not in OpenAI's API.")
    top_k: Int = Field(0, ge=0, description="0 is off. Not in OpenAI's API.")
    repetition_penalty: float = Field(1.0, gt=0.0, le=100.0, description="1 is off. Not in OpenAI's API.")
    receipt: bool = Field(False, description="Give a receipt per choice in `emorl`. Not in OpenAI's API.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_implemented(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, allowed in cls.off.items():
            # `in` would take True for 1 and 0 for False, which is harmless here: both spell the same off value.
            if name in data and data[name] not in allowed:
                raise InvalidRequest(f"{name} is not implemented; leave it out", param=name)
        return {name: value for name, value in data.items() if name not in cls.off}

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
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_new_tokens: int, choice: int) -> dict[str, Any]:
        """The arguments of `Ensemble.request` for choice number `choice`."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "max_new_tokens": max_new_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "seed": None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1),
            "stop": tuple(stop),
        }


Texts = Annotated[list[Text], Field(min_length=1)]
TokenIds = Annotated[list[Annotated[Int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(OpenAIRequest):
    """`POST /v1/completions`. A text gets the bundle's prompt template; token ids are taken as they are."""

    model_config = ConfigDict(
        json_schema_extra=_document(
            _OFF_COMPLETIONS,
            {"model": "counselor-demo:balanced", "prompt": "I can't keep up at work.", "max_tokens": 48},
        )
    )
    off: ClassVar[dict[str, tuple[Any, ...]]] = _OFF_COMPLETIONS

    prompt: (
        Text | Annotated[list[Text], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    )
    max_tokens: Int | None = Field(None, ge=1, description="Default 16.")
    echo: bool | None = Field(None, description="Put the prompt before each completion; not with logprobs.")
    logprobs: Int | None = Field(None, ge=0, le=5, description="Log-probabilities, with this many alternatives.")

    @model_validator(mode="after")
    def _no_logprobs_of_the_prompt(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "echo with logprobs is not implemented: the encoder gives its prompt no probabilities", param="echo"
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = Field(None, description="Accepted for compatibility; not used.")

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(OpenAIRequest):
    """`POST /v1/chat/completions`.

    The models of this server answer one statement: the last user message, in the bundle's prompt template. Earlier
    messages and system messages are accepted, because clients send them, and do not reach the model.
    """

    model_config = ConfigDict(
        json_schema_extra=_document(
            _OFF_CHAT,
            {
                "model": "counselor-demo",
                "messages": [{"role": "user", "content": "I can't keep up at work."}],
                "objective_weights": {"reflection": 0.7, "empathy": 0.3},
            },
        )
    )
    off: ClassVar[dict[str, tuple[Any, ...]]] = _OFF_CHAT
    names: ClassVar[dict[str, str]] = {**OpenAIRequest.names, "prompt": "messages"}

    messages: list[Message] = Field(min_length=1)
    max_tokens: Int | None = Field(None, ge=1, description="Default: the server's limit.")
    max_completion_tokens: Int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Int | None = Field(None, ge=0, le=20, description="Needs logprobs: true.")

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only for logprobs: true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ; give one of them", param="max_completion_tokens"
            )
        if not any(message.role == "user" for message in self.messages):
            raise InvalidRequest(
                "messages: there is no user message; the last one is what is answered", param="messages"
            )
        return self

    @property
    def prompt(self) -> str:
        return next(message.text for message in reversed(self.messages) if message.role == "user")

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens
