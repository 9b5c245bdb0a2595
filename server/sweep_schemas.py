"""The HTTP models of `POST /sweep` and `POST /sweep/line`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest, InvalidWeights
from emorl_core.line import Interval
from emorl_core.sweep import SweepItem, SweepPlan, SweepResult
from emorl_core.types import MAX_SEED
from emorl_core.weights import named
from server.lines import LineCompletion, LineRequest
from server.schemas import MAX_STOPS, Int, StopString, Strict, Text, Weight, check_limit

Texts = Annotated[list[Text], Field(min_length=1)]
Vectors = Annotated[list[dict[str, Weight]], Field(min_length=1)]


class SweepRequest(Strict):
    """`POST /sweep`: every prompt under every weight vector. Give exactly one of `weights` and `resolution`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["I can't keep up at work."], "resolution": 10},
                {"prompts": ["I can't keep up at work."], "weights": [{"reflection": 1.0}, {"empathy": 1.0}]},
            ]
        }
    )

    prompts: Texts = Field(description="What the clients said; the bundle's template is put around each.")
    weights: Vectors | None = Field(None, description="The weight vectors.")
    resolution: Int | None = Field(None, ge=1, description="Instead: every vector of steps 1 / resolution, sum 1.")
    normalize: bool = Field(True, description="Scale the weights to sum 1. Negative weights need false.")
    combine: Literal["hidden", "probs"] = Field("hidden", description="Mix hidden states, or probabilities.")
    max_new_tokens: Int = Field(64, ge=1, description="Most tokens to generate; the server's own limit is in /info.")
    min_new_tokens: Int = Field(0, ge=0, description="The end cannot come before this many tokens.")
    temperature: float = Field(0.0, ge=0.0, le=100.0, description="0 always takes the most likely token.")
    top_k: Int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 is off.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Sample among the most likely tokens of this mass; 1 is off.")
    repetition_penalty: float = Field(1.0, gt=0.0, le=100.0, description="Above 1: tokens used already count less.")
    seed: Int | None = Field(None, ge=0, le=MAX_SEED, description="One for all completions. Null: one is drawn.")
    stop: list[StopString] = Field(
        default_factory=list, max_length=MAX_STOPS, description="Texts that end the answer; never part of it."
    )
    stream: bool = Field(False, description="Answer with server-sent events, results as they finish.")

    def plan(self, ensemble: Ensemble, *, max_new_tokens: int, max_sweep: int) -> SweepPlan:
        """Raises `InvalidRequest` and its kinds. The arguments are the server's limits."""
        check_limit("max_new_tokens", self.max_new_tokens, max_new_tokens)
        if self.weights is not None:
            self._check_size(len(self.weights), max_sweep)
        plan = ensemble.sweep_plan(
            self.prompts,
            self.weights,
            resolution=self.resolution,
            normalize=self.normalize,
            combine=self.combine,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
        )
        self._check_size(len(plan.vectors), max_sweep)
        return plan

    def _check_size(self, vectors: int, limit: int) -> None:
        if len(self.prompts) * vectors > limit:
            raise InvalidRequest(
                f"the sweep asks for {len(self.prompts)} x {vectors} completions; allowed: up to {limit}"
                " (max_sweep, a setting of this server)",
                param="weights" if self.weights is not None else "resolution",
            )


class SweepText(BaseModel):
    """One distinct text of a prompt and the vectors (indices into `weights`) that give it."""

    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    completion_tokens: int
    weights: list[int]


class SweepCost(BaseModel):
    """Lane rows computed, one token each, and what one run per prompt and vector would have computed."""

    lane_row_steps: int
    unshared_lane_row_steps: int


class SweepResponse(BaseModel):
    """The answer of `POST /sweep`, and the last event of its stream (with `"type": "done"`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "sweep-0f3a",
                    "model": "counselor-demo",
                    "weights": [{"reflection": 1.0, "empathy": 0.0}, {"reflection": 0.0, "empathy": 1.0}],
                    "results": [
                        [
                            {
                                "text": "You feel that work asks more than you have.",
                                "finish_reason": "stop",
                                "completion_tokens": 11,
                                "weights": [0, 1],
                            }
                        ]
                    ],
                    "seed": 17,
                    "cost": {"lane_row_steps": 22, "unshared_lane_row_steps": 22},
                }
            ]
        }
    )

    id: str
    model: str
    weights: list[dict[str, float]] = Field(description="Resolved, in the order given.")
    results: list[list[SweepText]] = Field(description="Per prompt: its distinct texts.")
    seed: int
    cost: SweepCost


def sweep_answer(sweep_id: str, model: str, plan: SweepPlan, result: SweepResult) -> dict[str, Any]:
    """`SweepResponse` as plain dictionaries."""
    results = []
    for prompt in range(len(plan.prompts)):
        items = result.of_prompt(prompt)
        results.append(
            [
                {
                    "text": text,
                    "finish_reason": items[indices[0]].finish_reason.value,
                    "completion_tokens": len(items[indices[0]].token_ids),
                    "weights": indices,
                }
                for text, indices in result.distinct(prompt).items()
            ]
        )
    return {
        "id": sweep_id,
        "model": model,
        "weights": [vector.as_dict() for vector in plan.vectors],
        "results": results,
        "seed": result.seed,
        "cost": {
            "lane_row_steps": result.lane_row_steps,
            "unshared_lane_row_steps": result.unshared_lane_row_steps,
        },
    }


def sweep_item(item: SweepItem, plan: SweepPlan) -> dict[str, Any]:
    """One event of the stream; `completed` of `total` tells the progress."""
    return {
        "type": "item",
        "prompt": item.prompt_index,
        "weights": item.weights_index,
        "text": item.text,
        "finish_reason": item.finish_reason.value,
        "completed": plan.completed,
        "total": len(plan.prompts) * len(plan.vectors),
    }


# --- the line --------------------------------------------------------------------------------------------------------


class LineBody(Strict):
    """`POST /sweep/line`: every greedy text on the line w(t) = (1 - t) * from + t * to, and the exact t at which it
    changes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "I can't keep up at work.", "from": {"reflection": 1.0}, "to": {"empathy": 1.0}},
                {
                    "prompt": "I can't keep up at work.",
                    "from": {"reflection": 0.8, "fluency": 0.2},
                    "to": {"empathy": 0.8, "fluency": 0.2},
                    "max_new_tokens": 32,
                    "stream": True,
                },
            ]
        }
    )

    prompt: Text = Field(description="What the client said; the bundle's template is put around it.")
    start: dict[str, Weight] = Field(alias="from", description="Weights at t = 0; names not listed weigh 0.")
    end: dict[str, Weight] = Field(alias="to", description="Weights at t = 1.")
    normalize: bool = Field(True, description="Scale both ends to sum 1. Negative weights need false.")
    min_width: float = Field(1e-7, ge=1e-9, le=1.0, description="Intervals of t narrower than this are not divided.")
    max_new_tokens: Int = Field(64, ge=1, description="Most tokens of each text; the server's own limit is in /info.")
    min_new_tokens: Int = Field(0, ge=0, description="The end cannot come before this many tokens.")
    stop: list[StopString] = Field(
        default_factory=list, max_length=MAX_STOPS, description="Texts that end the answer; never part of it."
    )
    stream: bool = Field(False, description="Answer with server-sent events, intervals as they are found.")

    def to_core(self, ensemble: Ensemble, request_id: str, *, max_new_tokens: int, max_sweep: int) -> LineRequest:
        """Raises `InvalidRequest` and its kinds. `max_new_tokens`, `max_sweep`: the server's limits."""
        check_limit("max_new_tokens", self.max_new_tokens, max_new_tokens)
        first, last = (self._end(ensemble, name, weights) for name, weights in (("from", self.start), ("to", self.end)))
        request = ensemble.request(
            self.prompt,
            weights=self.start,
            normalize=self.normalize,
            stream=False,
            request_id=request_id,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            seed=0,
            stop=tuple(self.stop),
        )
        return LineRequest(
            request.request_id,
            request.prompt_ids,
            first,
            request.sampling,
            stream=False,
            to=last,
            decode=ensemble.tokenizer.decode,
            min_width=self.min_width,
            most=max_sweep,
        )

    def _end(self, ensemble: Ensemble, name: str, weights: dict[str, float]) -> tuple[float, ...]:
        """The vector of one end; an error in it is told by the name that the caller used."""
        try:
            return ensemble.resolve(weights, normalize=self.normalize).vector
        except InvalidWeights as error:
            param = (error.param or "weights").replace("weights", name, 1)
            raise InvalidWeights(f"{name}: {error.message}", param=param) from None


class LineText(BaseModel):
    """Every t from `start` to `end` gives this text."""

    start: float
    end: float
    text: str
    finish_reason: Literal["stop", "length"]
    completion_tokens: int


class LineResponse(BaseModel):
    """The answer of `POST /sweep/line`, and the last event of its stream (with `"type": "done"`).

    `intervals` rise, touch, and cover 0 to 1; the texts of neighbours differ in their tokens."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "line-0f3a",
                    "model": "counselor-demo",
                    "from": {"reflection": 1.0, "empathy": 0.0},
                    "to": {"reflection": 0.0, "empathy": 1.0},
                    "intervals": [
                        {
                            "start": 0.0,
                            "end": 0.4183,
                            "text": "Work asks more than you have.",
                            "finish_reason": "stop",
                            "completion_tokens": 8,
                        },
                        {
                            "start": 0.4183,
                            "end": 1.0,
                            "text": "You feel worn out by work.",
                            "finish_reason": "stop",
                            "completion_tokens": 8,
                        },
                    ],
                    "lane_row_steps": 26,
                }
            ]
        }
    )

    id: str
    model: str
    start: dict[str, float] = Field(alias="from", description="Resolved weights at t = 0.")
    end: dict[str, float] = Field(alias="to", description="Resolved weights at t = 1.")
    intervals: list[LineText]
    lane_row_steps: int = Field(description="Lane rows computed, one token each.")


def line_interval(interval: Interval) -> dict[str, Any]:
    """`LineText` as a plain dictionary."""
    return {
        "start": interval.start,
        "end": interval.end,
        "text": interval.text,
        "finish_reason": interval.finish_reason.value,
        "completion_tokens": len(interval.token_ids),
    }


def line_answer(model: str, lanes: Sequence[str], request: LineRequest, completion: LineCompletion) -> dict[str, Any]:
    """`LineResponse` as plain dictionaries."""
    return {
        "id": request.request_id,
        "model": model,
        "from": named(lanes, request.weights),
        "to": named(lanes, request.to),
        "intervals": [line_interval(interval) for interval in completion.intervals],
        "lane_row_steps": completion.lane_row_steps,
    }
