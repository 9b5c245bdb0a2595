"""The HTTP models of `POST /sweep`."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emorl_core.engine.sweep import SweepItem, SweepPlan, SweepResult, texts_of
from emorl_core.frontend import Frontend
from server.api.asked import PromptsFields
from server.api.fields import FirstFault, Int, NormalizeField, SamplingFields, Seed, Weights
from server.api.scores_models import Reason, ScoreField, Unit

Vectors = Annotated[list[Weights], FirstFault(), Field(min_length=1)]


class SweepRequest(PromptsFields, ScoreField, NormalizeField, SamplingFields):
    """`POST /sweep`: every prompt under every weight vector. Give exactly one of `weights` and `resolution`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["I can't keep up at work."], "resolution": 10},
                {"prompts": ["I can't keep up at work."], "weights": [{"reflection": 1.0}, {"empathy": 1.0}]},
            ]
        }
    )

    weights: Vectors | None = Field(None, description="The weight vectors.")
    resolution: Int | None = Field(None, ge=1, description="Instead: every vector of steps 1 / resolution, sum 1.")
    seed: Seed | None = Field(None, description="One for all completions. Null: one is drawn.")
    stream: bool = Field(False, description="Answer with server-sent events, results as they finish.")

    def plan(self, ensemble: Frontend, *, max_new_tokens: int, max_sweep: int) -> SweepPlan:
        """Raises `InvalidRequest` and its kinds. The arguments are the server's limits."""
        return ensemble.sweep_plan(
            self.prompts,
            self.weights,
            messages=self.chat,
            chats=self.every_chat,
            resolution=self.resolution,
            max_sweep=max_sweep,
            **self.options(max_new_tokens=max_new_tokens),
        )


class SweepText(BaseModel):
    """One distinct text of a prompt and the vectors (indices into `weights`) that give it."""

    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    completion_tokens: int
    weights: list[int]
    scores: dict[str, Unit | None] | None = Field(None, description="As `POST /score` gives them; when asked for.")
    unscored: dict[str, Reason] | None = Field(None, description="Beside `scores`: why there is none.")


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
    results: list[list[dict[str, Any]]] = [[] for _ in plan.prompts]
    for prompt, group in groupby(result.items, key=lambda item: item.prompt_index):
        items = {item.weights_index: item for item in group}
        results[prompt] = [
            {
                "text": text,
                "finish_reason": items[indices[0]].finish_reason.value,
                "completion_tokens": len(items[indices[0]].token_ids),
                "weights": indices,
            }
            for text, indices in texts_of(items.values()).items()
        ]
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
