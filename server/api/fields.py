"""The field types of all requests. Unknown fields are refused, and types are strict: `"64"` is not a number.

Bounds repeat those of `emorl_core.types.Sampling`, because the OpenAPI document must state them; a test keeps the two
in sync. A body with thousands of faults is refused for the first of them, since reporting all would block the event
loop for seconds.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    WithJsonSchema,
    model_validator,
)

from emorl_core.config import Strict
from emorl_core.errors import InvalidRequest, shown
from emorl_core.types import MAX_BIAS, MAX_SEED, MIN_POSITIVE, Combine
from server.door.errors import UnknownField

MAX_STOPS = 16
MAX_NAMES = 1024  # objectives in one weight vector; more than any bundle has
_SPARE_KEYS = 64  # up to this many unknown fields are reported one by one


class FirstFault(FailFast):
    """Stop at the first wrong item of a list. pydantic's own `FailFast` is not hashable, which unions require."""

    __hash__ = object.__hash__


def _unicode(text: str) -> str:
    # JSON escapes can encode a lone surrogate, which neither tokenizers nor UTF-8 accept.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text; it has half a surrogate pair in it") from None
    return text


def _integral(value: object) -> object:
    # JSON has one number type: 60.0 is an integer to JSON Schema and to some clients.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few(value: object) -> object:
    # Before the values are validated: pydantic counts the entries of a mapping last.
    if isinstance(value, dict) and len(value) > MAX_NAMES:
        raise ValueError(f"must have at most {MAX_NAMES} entries; it has {len(value)}")
    return value


def _temperature(value: float) -> float:
    if 0.0 < value < MIN_POSITIVE:
        raise ValueError(f"must be 0, or from {MIN_POSITIVE:g} to 100")
    return value


Int = Annotated[int, BeforeValidator(_integral)]
Text = Annotated[str, AfterValidator(_unicode)]
Texts = Annotated[list[Text], FirstFault(), Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_unicode)]
Stops = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
Weight = Annotated[float, Field(allow_inf_nan=False)]
Weights = Annotated[dict[str, Weight], Field(max_length=MAX_NAMES), BeforeValidator(_few)]
Seed = Annotated[Int, Field(ge=0, le=MAX_SEED)]
Temperature = Annotated[
    float,
    Field(ge=0.0, le=100.0),
    AfterValidator(_temperature),
    WithJsonSchema({"anyOf": [{"const": 0}, {"type": "number", "minimum": MIN_POSITIVE, "maximum": 100}]}),
]
TopP = Annotated[float, Field(ge=MIN_POSITIVE, le=1.0)]
Penalty = Annotated[float, Field(ge=MIN_POSITIVE, le=100.0)]


Subtracted = Annotated[float, Field(ge=-2.0, le=2.0)]
MinP = Annotated[float, Field(ge=0.0, le=1.0)]
TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # as JSON writes a key
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
LogitBias = Annotated[dict[TokenId, Bias], Field(max_length=MAX_NAMES), BeforeValidator(_few)]


def example(**fields: Any) -> ConfigDict:
    """A `model_config` with one example for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Body(Strict):
    """Base of every request; types are strict."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > len(cls.model_fields) + _SPARE_KEYS:
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = next(name for name in data if name not in known)
            raise UnknownField(f"unknown field {unknown[:40]!r}", param=unknown[:40])
        return data


def check_limit(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidRequest(f"{name} is {shown(value)}; allowed: up to {limit} (a setting of this server)", param=name)


class NormalizeField(Body):
    """A request with weights."""

    normalize: bool = Field(True, description="Scale the weights to sum 1. Negative weights need false.")


class LengthFields(Body):
    """Fields of every generating request of the native API: the length of its texts."""

    max_new_tokens: Int = Field(64, ge=1, description="Most tokens to generate; the server's own limit is in /info.")
    min_new_tokens: Int = Field(0, ge=0, description="The reply cannot end before this many tokens.")
    stop: Stops = Field(default_factory=list, description="Texts that end the answer; never part of it.")

    def options(self, *, max_new_tokens: int) -> dict[str, Any]:
        """The shared fields as keywords of `Requests`. max_new_tokens: the server's limit. Raises InvalidRequest."""
        check_limit("max_new_tokens", self.max_new_tokens, max_new_tokens)
        return self.model_dump(include={*NormalizeField.model_fields, *SamplingFields.model_fields})


class SamplingFields(LengthFields):
    """Fields of requests that may sample."""

    combine: Combine = Field(
        "hidden", description="Mix hidden states or probabilities, or sum the adapters (`weights`)."
    )
    temperature: Temperature = Field(0.0, description="0 always chooses the most likely token.")
    top_k: Int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 is off.")
    top_p: TopP = Field(1.0, description="Sample among the most likely tokens of this total probability; 1 is off.")
    repetition_penalty: Penalty = Field(1.0, description="Above 1: tokens used already become less likely.")
    presence_penalty: Subtracted = Field(0.0, description="Subtracted from the logits of tokens in the reply.")
    frequency_penalty: Subtracted = Field(0.0, description="Subtracted once for each occurrence.")
    min_p: MinP = Field(0.0, description="Drop tokens less likely than this fraction of the most likely; 0 is off.")
    no_repeat_ngram_size: Int = Field(0, ge=0, description="Never repeat a sequence of this many tokens; 0 is off.")
    logit_bias: LogitBias = Field(default_factory=dict, description="Token id -> number added to its logit.")
    seed: Seed | None = Field(None, description="Null: a random seed is drawn and reported.")
