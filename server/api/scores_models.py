"""The HTTP models of scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.api.asked import PromptFields
from server.api.fields import Body, Texts

Reason = Literal["failed", "timeout", "busy", "code", "too_long"]
Unit = Annotated[float, Field(ge=0, le=1)]


class ScoreField(Body):
    """A request that may ask for scores."""

    score: bool = Field(False, description="Give each text's scores by the bundle's scorers, once it is whole.")


class ScoreRequest(PromptFields):
    """`POST /score`: texts as replies to one prompt or chat."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "I can't keep up at work.", "texts": ["You feel worn out by work.", "Hello."]}]
        }
    )

    texts: Texts = Field(description="As many as the server's max_sweep.")


class TextScores(BaseModel):
    """Of one text."""

    scores: dict[str, Unit | None] = Field(description="By scorer, 0 to 1; null where there is none.")
    unscored: dict[str, Reason] = Field(
        description="Why there is none: the scorer failed; was too late (timeout); is a Python function, which may not"
        " run here (code); too many texts wait (busy); prompt or text is too_long."
    )


class ScoreResponse(BaseModel):
    """The answer of `POST /score`. The scores of a chat are those of the reply to its last user message."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "counselor-demo",
                    "results": [{"scores": {"reflection": 0.71, "empathy": None}, "unscored": {"empathy": "timeout"}}],
                }
            ]
        }
    )

    model: str
    results: list[TextScores] = Field(description="In the order of `texts`.")
