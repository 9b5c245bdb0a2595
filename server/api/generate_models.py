"""The HTTP models of `POST /generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from emorl_core.drafts.plan import DraftsPlan
from emorl_core.drafts.requests import DRAWN
from emorl_core.errors import InvalidRequest
from emorl_core.frontend import Frontend
from emorl_core.types import Attribution, Completion, Request
from emorl_core.weights import named
from server.api.asked import PromptFields
from server.api.drafts_models import Chosen
from server.api.fields import NormalizeField, SamplingFields, Weights
from server.api.scores_models import Reason, ScoreField, Unit
from server.serving.receipt import Receipt


def _kind(value: object) -> str:
    return "word" if isinstance(value, str) else "mapping"


# Distinguished before validation, so that an error is about one of them.
WeightsOrAuto = Annotated[
    Annotated[Weights, Tag("mapping")] | Annotated[Literal["auto"], Tag("word")], Discriminator(_kind)
]


class GenerateRequest(PromptFields, ScoreField, NormalizeField, SamplingFields):
    """`POST /generate`. `weights` and `profile` exclude each other; with neither, the bundle's default profile."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "I can't keep up at work.", "weights": {"reflection": 0.7, "empathy": 0.3}},
                {"prompt": "I can't keep up at work.", "profile": "balanced", "temperature": 0.7, "stream": True},
                {"prompt": "I can't keep up at work.", "weights": "auto"},
            ]
        }
    )

    weights: WeightsOrAuto | None = Field(
        None,
        description="Objective -> number; names not listed weigh 0. Or `auto`: those of the best draft that"
        " `POST /drafts` finds by its defaults; not with stream.",
    )
    profile: str | None = Field(None, description="Named weights of the bundle, instead of `weights`.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    attribution: bool = Field(False, description="Give `tokens`, each with its margin split over the objectives.")
    receipt: bool = Field(False, description="Give `receipt`: all that is needed to make this text again.")

    @model_validator(mode="after")
    def _auto_alone(self) -> GenerateRequest:
        """Raises InvalidRequest for options that do not work with `auto`, whose weights are not known yet."""
        if self.weights == "auto":
            beside = {
                "profile": (self.profile is None, "a profile", "one of them"),
                "normalize": (self.normalize, "normalize: false", "true, as the weights looked at sum to 1"),
                "stream": (not self.stream, "stream: true", "false, as the best text is known when all are whole"),
            }
            for name, (fits, found, allowed) in beside.items():
                if not fits:
                    raise InvalidRequest(f"{found} does not go with weights: auto; allowed: {allowed}", param=name)
        return self

    def plan(self, ensemble: Frontend, request_id: str, *, max_new_tokens: int, max_sweep: int) -> DraftsPlan:
        """The plan of a request with `auto`. Raises `InvalidRequest` and its kinds. The last two are the server's
        limits."""
        options = self.options(max_new_tokens=max_new_tokens)
        for name in ("normalize", *(DRAWN.keys() - self.model_fields_set)):
            del options[name]
        return ensemble.drafts_plan(
            self.prompt,
            messages=self.chat,
            attribution=self.attribution,
            max_sweep=max_sweep,
            request_id=request_id,
            **options,
        )

    def to_core(self, ensemble: Frontend, request_id: str, *, max_new_tokens: int) -> Request:
        """Raises `InvalidRequest` and its kinds. `max_new_tokens`: the server's limit."""
        assert self.weights != "auto"
        return ensemble.request(
            self.prompt,
            messages=self.chat,
            weights=self.weights,
            profile=self.profile,
            attribution=self.attribution,
            stream=self.stream,
            request_id=request_id,
            **self.options(max_new_tokens=max_new_tokens),
        )


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timing(BaseModel):
    """Milliseconds since the request was accepted. `queue_ms`: until it got a slot."""

    queue_ms: float
    first_token_ms: float
    total_ms: float


class Token(BaseModel):
    """One chosen token. `attribution`: objective -> its part of the margin over the most likely other token."""

    id: int
    text: str
    logprob: float | None
    attribution: dict[str, float] | None


class GenerateResponse(BaseModel):
    """The answer of `POST /generate`, and the last event of its stream (with `"type": "done"`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "gen-0f3a",
                    "model": "counselor-demo",
                    "text": "You feel that work asks more than you have.",
                    "finish_reason": "stop",
                    "weights": {"reflection": 0.7, "empathy": 0.3, "fluency": 0.0},
                    "profile": None,
                    "seed": 17,
                    "usage": {"prompt_tokens": 9, "completion_tokens": 21, "total_tokens": 30},
                    "timing": {"queue_ms": 0.1, "first_token_ms": 31.0, "total_ms": 410.0},
                    "tokens": None,
                }
            ]
        }
    )

    id: str
    model: str
    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    weights: dict[str, float]
    profile: str | None
    seed: int
    usage: Usage
    timing: Timing
    tokens: list[Token] | None
    receipt: Receipt | None = Field(None, description="Only when asked for.")
    scores: dict[str, Unit | None] | None = Field(None, description="As by `POST /score`; only when asked for.")
    unscored: dict[str, Reason] | None = Field(None, description="Beside `scores`: why there is none.")
    chosen: Chosen | None = Field(None, description="Only with weights `auto`.")


# --- the answer as plain dictionaries: made for every token, where models would double the cost -----------------


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def usage_of(completions: Sequence[Completion]) -> dict[str, int]:
    """The prompt counts once for all choices of one prompt that share it."""
    prompt = completions[0].prompt_tokens
    generated = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def attribution_of(attribution: Attribution | None, lanes: Sequence[str]) -> dict[str, float] | None:
    return None if attribution is None else named(lanes, attribution.parts)


def answer(completion: Completion, model: str, lanes: Sequence[str]) -> dict[str, Any]:
    """`GenerateResponse` for a completion; `tokens` is filled when it carries attributions."""
    tokens = None
    if completion.attributions:
        tokens = [
            {"id": token_id, "text": text, "logprob": finite(logprob), "attribution": attribution_of(parts, lanes)}
            for token_id, text, logprob, parts in zip(
                completion.token_ids, completion.token_texts, completion.logprobs, completion.attributions, strict=True
            )
        ]
    return {
        "id": completion.request_id,
        "model": model,
        "text": completion.text,
        "finish_reason": completion.finish_reason.value,
        "weights": completion.weights,
        "profile": completion.profile,
        "seed": completion.seed,
        "usage": usage_of([completion]),
        "timing": {
            "queue_ms": round(completion.queue_s * 1000, 3),
            "first_token_ms": round(completion.first_token_s * 1000, 3),
            "total_ms": round(completion.total_s * 1000, 3),
        },
        "tokens": tokens,
    }
