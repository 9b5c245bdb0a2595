"""The answers of the OpenAI endpoints, for the OpenAPI document; bodies are built in `server.api.openai.answers`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.fields import example
from server.api.generate_models import Usage
from server.api.scores_models import TextScores
from server.serving.receipt import Receipt

Finish = Literal["stop", "length"]

_MODEL = {"id": "counselor-demo:balanced", "object": "model", "created": 1764000000, "owned_by": "emorl"}
_TEXT = "You feel that work asks more than you have."
_ENDS: dict[str, Any] = {
    "usage": {"prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20},
    "emorl": {"weights": {"reflection": 0.6, "empathy": 0.4, "fluency": 0.0}, "profile": "balanced", "seeds": [17]},
}


class Model(BaseModel):
    model_config = example(**_MODEL)

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    model_config = example(object="list", data=[{**_MODEL, "id": "counselor-demo"}, _MODEL])

    object: Literal["list"]
    data: list[Model]


class Steering(BaseModel):
    """Not part of OpenAI's API: what produced these texts. In a stream, the last chunk of each choice has its own."""

    weights: dict[str, float]
    profile: str | None
    seeds: list[int] = Field(description="One per choice.")
    receipts: list[Receipt] | None = Field(None, description="One per choice, only when asked for.")
    scores: list[TextScores] | None = Field(
        None, description="One per choice, only when asked for; in a stream, in a chunk without choices before the end."
    )


class TextLogprobs(BaseModel):
    tokens: list[str] = Field(description="Part of a character is `bytes:` and its bytes.")
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class TextCompletion(BaseModel):
    model_config = example(
        id="cmpl-0f3a",
        object="text_completion",
        created=1764000000,
        model="counselor-demo:balanced",
        choices=[{"index": 0, "text": _TEXT, "logprobs": None, "finish_reason": "stop"}],
        **_ENDS,
    )

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    emorl: Steering


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] = Field(description="UTF-8, which joins where a character has several tokens; empty for </s>.")


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    model_config = example(
        id="chatcmpl-0f3a",
        object="chat.completion",
        created=1764000000,
        model="counselor-demo:balanced",
        choices=[
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        **_ENDS,
    )

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    emorl: Steering
