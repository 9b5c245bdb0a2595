"""The HTTP models of `POST /drafts`, and of chosen weights (`auto` on `POST /generate`)."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emorl_core.drafts.plan import MAX_CANDIDATES, MAX_COUNT, MAX_SEEDS, Draft, Drafts, DraftsPlan, Wanted
from emorl_core.drafts.requests import DRAWN
from emorl_core.frontend import Frontend
from emorl_core.types import Completion
from server.api.asked import PromptFields
from server.api.fields import Int, SamplingFields, Seed, Temperature, TopP
from server.api.scores_models import Reason, Unit
from server.api.sweeps.sweep_models import SweepCost
from server.serving.receipt import Receipt

RankedBy = Literal["scores", "likelihood"]
_DEFAULT = Wanted()


class DraftsRequest(PromptFields, SamplingFields):
    """`POST /drafts`: a few good and different texts, generated under a spread of weights."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "I can't keep up at work."},
                {"prompt": "I can't keep up at work.", "count": 2, "candidates": 8, "receipt": False},
                {"prompt": "I can't keep up at work.", "temperature": 0.5, "seeds": 4, "stream": True},
            ]
        }
    )

    count: Int = Field(_DEFAULT.count, ge=1, le=MAX_COUNT, description="Most drafts; fewer where texts are too alike.")
    candidates: Int = Field(
        _DEFAULT.candidates,
        ge=1,
        le=MAX_CANDIDATES,
        description="Weights to try, each with its most likely text: the default profile, each objective alone, equal"
        " weights, the bundle's other profiles, then those farthest from all before.",
    )
    seeds: Int | None = Field(
        _DEFAULT.seeds,
        ge=0,
        le=MAX_SEEDS,
        description="Texts to sample from each objective alone, from `seed` on; they take one lane. Null: 48 divided"
        " among the objectives, and none at temperature 0.",
    )
    temperature: Temperature = Field(
        DRAWN["temperature"], description="Of the sampled texts. 0: only the most likely text of each of the weights."
    )
    top_p: TopP = Field(DRAWN["top_p"], description="Sample among the likeliest tokens of this total mass; 1 is off.")
    diversity: float = Field(
        _DEFAULT.diversity,
        ge=0.0,
        le=1.0,
        description="Weight of being different against being good, from the second draft on.",
    )
    min_distance: float = Field(
        _DEFAULT.min_distance,
        ge=0.0,
        le=1.0,
        description="Leave out texts closer than this to a better draft: 0 the same words, 1 none in common.",
    )
    seed: Seed | None = Field(
        None,
        description="Of the first sampled text of each objective. Null: 0, so the same request gives the same drafts.",
    )
    receipt: bool = Field(True, description="Give each draft's `receipt`: all that is needed to make it again.")
    stream: bool = Field(False, description="Answer with server-sent events: texts as they are found, drafts last.")

    def plan(self, ensemble: Frontend, request_id: str, *, max_new_tokens: int, max_sweep: int) -> DraftsPlan:
        """Raises `InvalidRequest` and its kinds. The last two are the server's limits."""
        return ensemble.drafts_plan(
            self.prompt,
            messages=self.chat,
            wanted=Wanted(self.count, self.candidates, self.seeds, self.diversity, self.min_distance),
            max_sweep=max_sweep,
            request_id=request_id,
            **self.options(max_new_tokens=max_new_tokens),
        )


class DraftText(BaseModel):
    """One draft. `weights`, `temperature` and `seed` give this text; `given_by` candidates in all gave it."""

    text: str
    text_sha256: str = Field(description="SHA-256 of the text in UTF-8, as `POST /choices` takes it.")
    finish_reason: Literal["stop", "length", "cancelled"]
    completion_tokens: int
    weights: dict[str, float]
    profile: str | None
    temperature: float = Field(description="0: the most likely text with these weights.")
    seed: int
    scores: dict[str, Unit | None] = Field(description="As by `POST /score`; empty without scorers.")
    unscored: dict[str, Reason]
    mean: Unit | None = Field(description="Mean of the scores; null if one is missing.")
    likelihood: Unit = Field(description="The geometric mean of its tokens' probabilities.")
    shares: dict[str, float] | None = Field(
        description="Objective -> its average share of the positive attribution; null where `combine` is not hidden."
    )
    given_by: int
    centre: dict[str, float] = Field(
        description="The mean weights of the candidates that gave this text; pass it on with a choice."
    )
    receipt: Receipt | None = Field(None, description="Unless `receipt` is false.")


class Chosen(BaseModel):
    """The candidates that a text was chosen from."""

    ranked_by: RankedBy = Field(description="The mean of the scores, or likelihood if nothing was scored.")
    candidates: int = Field(description="Texts generated: one for each of the weights, and the sampled ones.")
    distinct: int = Field(description="Different texts among them.")
    cost: SweepCost


class DraftsResponse(Chosen):
    """The answer of `POST /drafts`, and the last event of its stream (with `"type": "done"`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "drafts-0f3a",
                    "model": "counselor-demo",
                    "drafts": [
                        {
                            "text": "You feel that work asks more than you have.",
                            "text_sha256": sha256(b"You feel that work asks more than you have.").hexdigest(),
                            "finish_reason": "stop",
                            "completion_tokens": 11,
                            "weights": {"reflection": 0.0, "empathy": 1.0, "fluency": 0.0},
                            "profile": None,
                            "temperature": 0.7,
                            "seed": 1,
                            "scores": {"reflection": 0.71, "empathy": 0.8},
                            "unscored": {},
                            "mean": 0.755,
                            "likelihood": 0.62,
                            "shares": {"reflection": 0.0, "empathy": 1.0, "fluency": 0.0},
                            "given_by": 5,
                            "centre": {"reflection": 0.05, "empathy": 0.75, "fluency": 0.2},
                        }
                    ],
                    "seed": 0,
                    "ranked_by": "scores",
                    "candidates": 24,
                    "distinct": 17,
                    "cost": {"lane_row_steps": 580, "unshared_lane_row_steps": 1020},
                }
            ]
        }
    )

    id: str
    model: str
    drafts: list[DraftText] = Field(description="Best first.")
    seed: int


def chosen_among(found: Drafts) -> dict[str, Any]:
    """`Chosen` as plain dictionaries."""
    return {
        "ranked_by": found.ranked_by,
        "candidates": found.candidates,
        "distinct": found.distinct,
        "cost": {
            "lane_row_steps": found.lane_row_steps,
            "unshared_lane_row_steps": found.unshared_lane_row_steps,
        },
    }


def draft_text(draft: Draft, judged: dict[str, Any], receipt: Receipt | None) -> dict[str, Any]:
    """`DraftText` as plain dictionaries. judged: `TextScores` of it."""
    content = {
        "text": draft.text,
        "text_sha256": sha256(draft.text.encode()).hexdigest(),
        "finish_reason": draft.completion.finish_reason.value,
        "completion_tokens": draft.completion.completion_tokens,
        "weights": draft.weights,
        "profile": draft.completion.profile,
        "temperature": draft.temperature,
        "seed": draft.completion.seed,
        "scores": draft.scores,
        "unscored": judged.get("unscored", {}),
        "mean": draft.mean,
        "likelihood": draft.likelihood,
        "shares": draft.shares,
        "given_by": draft.given_by,
        "centre": draft.centre,
    }
    return content if receipt is None else {**content, "receipt": receipt.model_dump(mode="json")}


def found_text(completion: Completion, plan: DraftsPlan) -> dict[str, Any]:
    """One event of the stream; `completed` of `total` tells the progress."""
    return {
        "type": "text",
        "text": completion.text,
        "weights": completion.weights,
        "seed": completion.seed,
        "finish_reason": completion.finish_reason.value,
        "completed": plan.sweep.completed,
        "total": len(plan.sweep.vectors),
    }
