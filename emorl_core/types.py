"""The engine's frozen types: inputs (`Sampling`, `Request`) and outputs (`TokenEvent`, `Completion`, `IntervalFound`,
`RegionFound`, `Failure`), which carry their request's `tag`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args

from emorl_core.errors import EmorlError, InvalidRequest, shown

if TYPE_CHECKING:
    from torch import Tensor

Combine = Literal["hidden", "probs", "weights"]  # see `emorl_core.combine_modes`
COMBINE_MODES: tuple[Combine, ...] = get_args(Combine)
# Token ids per lane for objectives that have prompts of their own, empty for the other lanes; (): none has one.
LanePrompts = tuple[tuple[int, ...], ...]
Place = tuple[float, float, float]  # how much of each of three weight vectors; sum 1
Threads = int | Literal["auto"]  # that torch computes with; auto: chosen by measuring
Quantize = Literal["off", "float16", "int8"]  # how a base's matrices are kept; off: as the number format says
PromptLookup = Literal["off", "auto", "on"]  # whether tokens are copied from prompts; auto: where that pays
MAX_THREADS = 1024
MAX_SEED = 2**63 - 1
MAX_TOP_LOGPROBS = 20
# The smallest positive temperature, top_p and repetition penalty. They are used in float32, where 1e-46 is 0; logits
# divided by up to two of them stay finite, given the bounds on weights.
MIN_POSITIVE = 1e-8
MAX_BIAS = 100.0
MIN_WIDTH = 1e-9  # of an interval between two weight vectors; float32 weights do not tell closer ones apart


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # end of sequence or a stop string
    LENGTH = "length"  # max_new_tokens reached
    CANCELLED = "cancelled"


def _check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise InvalidRequest(f"{name} is {shown(value)}; allowed: {allowed}", param=name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _within(value: object, least: float, most: float) -> bool:
    """Whether a value is a number in this range; false for NaN, and safe for huge ints."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _check_stop(stop: object) -> None:
    """Validate stop strings; errors never show their text."""
    if not isinstance(stop, tuple):
        raise InvalidRequest(f"stop is of type {type(stop).__name__}; allowed: a tuple of texts", param="stop")
    for text in stop:
        if not isinstance(text, str) or not text:
            found = "an empty text" if text == "" else f"a value of type {type(text).__name__}"
            raise InvalidRequest(
                f"stop is a list with {found} in it; allowed: texts of at least one character", param="stop"
            )


def check_width(min_width: float) -> None:
    """Raises InvalidRequest unless intervals can be divided down to this width."""
    _check(_within(min_width, MIN_WIDTH, 1.0), "min_width", min_width, f"a number from {MIN_WIDTH:g} to 1")


def check_prompt_lookup(prompt_lookup: object) -> None:
    """Raises InvalidRequest unless the value is allowed."""
    words = get_args(PromptLookup)
    _check(prompt_lookup in words, "prompt_lookup", prompt_lookup, ", ".join(words))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion's tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1.0 are off.

    Raises `InvalidRequest` naming the field, the value and what is allowed.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0  # the end of sequence cannot be chosen before this many tokens
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # CTRL (Keskar et al. 2019): logits of tokens already produced are divided by it
    # Subtracted from the logits of tokens of the reply: once, and per occurrence (OpenAI's definition).
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_p: float = 0.0  # drop tokens less likely than this part of the likeliest (Nguyen et al. 2024); 0 is off
    no_repeat_ngram_size: int = 0  # no run of so many tokens comes twice; 0 is off
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit; ids rise
    seed: int | None = None  # None: one is drawn when the request is accepted, and reported
    stop: tuple[str, ...] = ()  # never part of the text

    def __post_init__(self) -> None:
        _check(
            _is_int(self.max_new_tokens) and self.max_new_tokens >= 1,
            "max_new_tokens",
            self.max_new_tokens,
            "a whole number from 1",
        )
        _check(
            _is_int(self.min_new_tokens) and 0 <= self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            self.min_new_tokens,
            f"a whole number from 0 to max_new_tokens ({shown(self.max_new_tokens)})",
        )
        _check(
            _within(self.temperature, 0.0, 0.0) or _within(self.temperature, MIN_POSITIVE, 100.0),
            "temperature",
            self.temperature,
            f"0 (greedy), or a number from {MIN_POSITIVE:g} to 100",
        )
        _check(_is_int(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "a whole number from 0 (off)")
        _check(
            _within(self.top_p, MIN_POSITIVE, 1.0), "top_p", self.top_p, f"a number from {MIN_POSITIVE:g} to 1.0 (off)"
        )
        _check(
            _within(self.repetition_penalty, MIN_POSITIVE, 100.0),
            "repetition_penalty",
            self.repetition_penalty,
            f"a number from {MIN_POSITIVE:g} to 100; 1.0 is off",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(_within(value, -2.0, 2.0), name, value, "a number from -2 to 2; 0 is off")
        _check(_within(self.min_p, 0.0, 1.0), "min_p", self.min_p, "a number from 0 (off) to 1")
        _check(
            _is_int(self.no_repeat_ngram_size) and self.no_repeat_ngram_size >= 0,
            "no_repeat_ngram_size",
            self.no_repeat_ngram_size,
            "a whole number from 0 (off)",
        )
        for token, bias in self.logit_bias:
            _check(_is_int(token) and token >= 0, "logit_bias", token, "token ids")
            _check(_within(bias, -MAX_BIAS, MAX_BIAS), f"logit_bias.{token}", bias, "a number from -100 to 100")
        _check(
            self.seed is None or (_is_int(self.seed) and 0 <= self.seed <= MAX_SEED),
            "seed",
            self.seed,
            f"null or a whole number from 0 to {MAX_SEED}",
        )
        _check_stop(self.stop)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def looks_back(self) -> bool:
        """Whether the tokens so far change which token is chosen next."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1.0)
        return any(penalties) or self.no_repeat_ngram_size > 0

    @property
    def adds(self) -> bool:
        """Whether a term is added to logits, so that their scale matters."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make, already tokenised and with its weights resolved.

    `weights` has one number per lane, in the engine's lane order (lane 0 is `base`). `prompt_ids` is what `base` reads,
    and every lane for which `lane_prompts` has no tokens of its own.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    weights: tuple[float, ...]
    sampling: Sampling = field(default_factory=Sampling)
    combine: Combine = "hidden"
    attribution: bool = False
    top_logprobs: int = 0  # number of alternatives per token event
    profile: str | None = None  # the profile the weights came from, echoed
    stream: bool = True  # False: no TokenEvent, only the Completion (a sweep makes thousands)
    logprobs: bool = True  # False, and no stream: the Completion has none, and they are not computed
    tag: Any = None  # the caller's, returned in the request's events
    lane_prompts: LanePrompts = ()
    # The base's last hidden state of the prompt [D] -> the weights, computed before the first token is chosen.
    # `weights` then only determine which lanes read the prompt; `base` must be one of them.
    predict: Callable[[Tensor], tuple[float, ...]] | None = None
    prompt_lookup: bool = True  # False: one token per step, even with prompt lookup

    def prompt_of(self, lane: int) -> tuple[int, ...]:
        """What a lane reads before its reply."""
        return self.lane_prompts[lane] or self.prompt_ids if self.lane_prompts else self.prompt_ids


@dataclass(frozen=True, slots=True)
class Attribution:
    """Exact split of the margin by which a token won over the most likely other token (method.md section 3).

    `margin` = sum of `parts`; one part per lane: w_i * (z_i[chosen] - z_i[runner_up]). A part can be negative, and so
    can the margin when the token was sampled or a penalty moved the choice.
    """

    margin: float
    parts: tuple[float, ...]
    runner_up: int

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Each lane's share of the positive parts, sum 1; None if there are none."""
        spoke_for = sum(max(part, 0.0) for part in self.parts)
        if not 0.0 < spoke_for < math.inf:
            return None
        return tuple(max(part, 0.0) / spoke_for for part in self.parts)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one request. The `text` of all events of a request concatenates to exactly the completion's text."""

    request_id: str
    index: int
    token_id: int
    text: str
    logprob: float  # natural log, under the mixed distribution before temperature, filters and penalties
    attribution: Attribution | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    completion: Completion | None = None  # set on the last event of a request that ended by itself
    tag: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request. `token_ids` holds every chosen token, the end of sequence included."""

    request_id: str
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    weights: dict[str, float]  # resolved, objective -> number; `base` is listed when it has weight
    seed: int
    prompt_tokens: int
    profile: str | None = None
    attributions: tuple[Attribution, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    token_texts: tuple[str, ...] = ()
    queue_s: float = 0.0  # accepted -> admitted to the batch
    first_token_s: float = 0.0  # accepted -> first token
    total_s: float = 0.0  # accepted -> end
    lane_row_steps: int = 0  # lane rows computed for it so far, one token each; shared with the others of its group
    compiled: bool = False  # by which step it was decoded
    tag: Any = None

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that ended with an error. Others are not affected."""

    request_id: str
    error: EmorlError
    tag: Any = None


@dataclass(frozen=True, slots=True)
class Interval:
    """All t in [start, end] give this text."""

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class IntervalFound:
    """A new interval of a request for segments; it may later be merged with a neighbour that has the same tokens."""

    request_id: str
    interval: Interval
    tag: Any = None


@dataclass(frozen=True, slots=True)
class Region:
    """Mixes of three weight vectors that give this text: all those in a convex polygon, or points of a grid."""

    polygon: tuple[Place, ...]  # corners in order; empty if only the points are known
    points: tuple[Place, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class RegionFound:
    """A new region of a request for a map. The first one with points invalidates all earlier ones."""

    request_id: str
    region: Region
    tag: Any = None


Event = TokenEvent | IntervalFound | RegionFound | Completion | Failure
