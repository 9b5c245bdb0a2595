"""The HTTP models of `POST /sweep/line`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emorl_core.engine.segments import SegmentsCompletion, SegmentsRequest
from emorl_core.frontend import Frontend
from emorl_core.types import MIN_WIDTH, Interval
from emorl_core.weights import named
from server.api.asked import PromptFields
from server.api.fields import Int, LengthFields, NormalizeField, Weights

# Most intervals of one request that run at once: more would slow down every other request's steps.
_SLOTS = 4


class SegmentsBody(PromptFields, NormalizeField, LengthFields):
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

    start: Weights = Field(alias="from", description="Weights at t = 0; names not listed weigh 0.")
    end: Weights = Field(alias="to", description="Weights at t = 1.")
    normalize: bool = Field(True, description="Scale both ends to sum 1. Negative weights need false.")
    min_width: float = Field(1e-7, ge=MIN_WIDTH, le=1.0, description="Narrower intervals of t are not divided.")
    max_new_tokens: Int = Field(64, ge=1, description="Most tokens of each text; the server's own limit is in /info.")
    stream: bool = Field(False, description="Answer with server-sent events, intervals as they are found.")

    def to_core(
        self, ensemble: Frontend, request_id: str, *, max_new_tokens: int, max_sweep: int, time_limit_s: float
    ) -> SegmentsRequest:
        """Raises `InvalidRequest` and its kinds. `max_new_tokens`, `max_sweep`, `time_limit_s`: the server's limits."""
        return ensemble.segments_request(
            self.prompt,
            self.start,
            self.end,
            messages=self.chat,
            names=("from", "to"),
            min_width=self.min_width,
            request_id=request_id,
            most=max_sweep,
            most_named="max_sweep, a setting of this server",
            most_slots=_SLOTS,
            time_limit_s=time_limit_s,
            time_limit_named="sweep_line_timeout_s, a setting of this server",
            **self.options(max_new_tokens=max_new_tokens),
        )


class SegmentText(BaseModel):
    """Every t from `start` to `end` gives this text."""

    start: float
    end: float
    text: str
    finish_reason: Literal["stop", "length"]
    completion_tokens: int


class SegmentsResponse(BaseModel):
    """The answer of `POST /sweep/line`, and the last event of its stream (with `"type": "done"`).

    `intervals` are in ascending order, touch, and cover 0 to 1; the texts of neighbours differ in their tokens."""

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
    intervals: list[SegmentText]
    lane_row_steps: int = Field(description="Lane rows computed, one token each.")


def segment_text(interval: Interval) -> dict[str, Any]:
    """`SegmentText` as a plain dictionary."""
    return {
        "start": interval.start,
        "end": interval.end,
        "text": interval.text,
        "finish_reason": interval.finish_reason.value,
        "completion_tokens": len(interval.token_ids),
    }


def segments_answer(
    model: str, lanes: Sequence[str], request: SegmentsRequest, completion: SegmentsCompletion
) -> dict[str, Any]:
    """`SegmentsResponse` as plain dictionaries."""
    return {
        "id": request.request_id,
        "model": model,
        "from": named(lanes, request.weights),
        "to": named(lanes, request.to),
        "intervals": [segment_text(interval) for interval in completion.intervals],
        "lane_row_steps": completion.lane_row_steps,
    }
