"""The native HTTP models: what `POST /generate` may say, and what the answers hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emorl_core.ensemble import Ensemble
from emorl_core.types import Attribution, Combine, Completion, Request
from emorl_core.weights import named
from server.api.fields import Int, Penalty, Seed, Stops, Strict, Temperature, Text, TopP, Weights, check_limit, example
from server.serving.receipt import Identity, Receipt


class GenerateRequest(Strict):
    """`POST /generate`. `weights` and `profile` exclude each other; with neither, the bundle's default profile."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "I can't keep up at work.", "weights": {"reflection": 0.7, "empathy": 0.3}},
                {"prompt": "I can't keep up at work.", "profile": "balanced", "temperature": 0.7, "stream": True},
            ]
        }
    )

    prompt: Text = Field(description="What the client said; the bundle's template is put around it.")
    weights: Weights | None = Field(None, description="Objective -> number; names not listed weigh 0.")
    profile: str | None = Field(None, description="Named weights of the bundle, instead of `weights`.")
    normalize: bool = Field(True, description="Scale the weights to sum 1. Negative weights need false.")
    combine: Combine = Field(
        "hidden", description="Mix hidden states or probabilities, or sum the adapters (`weights`): one model's price."
    )
    max_new_tokens: Int = Field(64, ge=1, description="Most tokens to generate; the server's own limit is in /info.")
    min_new_tokens: Int = Field(0, ge=0, description="The end cannot come before this many tokens.")
    temperature: Temperature = Field(0.0, description="0 always takes the most likely token.")
    top_k: Int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 is off.")
    top_p: TopP = Field(1.0, description="Sample among the most likely tokens of this mass; 1 is off.")
    repetition_penalty: Penalty = Field(1.0, description="Above 1: tokens used already count less.")
    seed: Seed | None = Field(None, description="Null: one is drawn and reported.")
    stop: Stops = Field(default_factory=list, description="Texts that end the answer; never part of it.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    attribution: bool = Field(False, description="Give `tokens`, each with its margin split over the objectives.")

    receipt: bool = Field(False, description="Give `receipt`: all that is needed to make this text again.")

    def to_core(self, ensemble: Ensemble, request_id: str, *, max_new_tokens: int) -> Request:
        """Raises `InvalidRequest` and its kinds. `max_new_tokens`: the server's limit."""
        check_limit("max_new_tokens", self.max_new_tokens, max_new_tokens)
        return ensemble.request(
            self.prompt,
            weights=self.weights,
            profile=self.profile,
            normalize=self.normalize,
            combine=self.combine,
            attribution=self.attribution,
            stream=self.stream,
            request_id=request_id,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
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


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class Objective(BaseModel):
    """`adapter` is false for `base`, the bare model, which can be weighted like any other."""

    name: str
    description: str
    adapter: bool


class Objectives(BaseModel):
    model_config = example(
        objectives=[
            {"name": "base", "description": "the model without any adapter", "adapter": False},
            {"name": "reflection", "description": "gives the client's meaning back", "adapter": True},
        ]
    )

    objectives: list[Objective]


class Profile(BaseModel):
    """`weights` as a request with this profile resolves them; `origin` as the bundle tells it."""

    name: str
    weights: dict[str, float]
    origin: dict[str, Any]


class Profiles(BaseModel):
    model_config = example(
        default="balanced",
        profiles=[{"name": "balanced", "weights": {"reflection": 0.6, "empathy": 0.4}, "origin": {"by": "a search"}}],
    )

    default: str | None
    profiles: list[Profile]


class Limits(BaseModel):
    max_source_tokens: int
    max_prompt_chars: int
    max_new_tokens: int
    max_body_bytes: int
    max_choices: int
    max_sweep: int
    slots: int
    max_queue: int


class Info(BaseModel):
    model_config = example(
        model="counselor-demo",
        version="0.1.0",
        format="emorl-bundle/1",
        architecture="t5",
        prompt_template="{prompt} [SEP] ",
        objectives=["base", "reflection", "empathy"],
        profiles=["balanced"],
        default_profile="balanced",
        device="cpu",
        dtype="float32",
        compiled=False,
        threads=2,
        parameter_bytes={"base": 891600000, "adapters": 38900000},
        identity={
            "bundle": "counselor-demo",
            "source": None,
            "prompt_template": "{prompt} [SEP] ",
            "bundle_yaml": "9f2c…",
            "base": "41d0…",
            "adapters": {"reflection": "c7aa…", "empathy": "05be…"},
        },
        limits={
            "max_source_tokens": 128,
            "max_prompt_chars": 4096,
            "max_new_tokens": 1024,
            "max_body_bytes": 262144,
            "max_choices": 8,
            "max_sweep": 4096,
            "slots": 16,
            "max_queue": 64,
        },
    )

    model: str
    version: str
    format: str
    architecture: str
    prompt_template: str
    objectives: list[str]
    profiles: list[str]
    default_profile: str | None
    device: str
    dtype: str
    compiled: bool
    threads: int
    parameter_bytes: dict[str, int]
    identity: Identity
    limits: Limits


class Health(BaseModel):
    model_config = example(status="ok")

    status: Literal["ok"]


# --- the answer as plain dictionaries: these are made for every token, models would double their cost -----------------


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
