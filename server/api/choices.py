"""`POST /choices` and `POST /profiles/learn`: which drafts a person took, and the weights that this says they want."""

from __future__ import annotations

import asyncio
from hashlib import sha256

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from emorl_core.choices.learning import CREDIBLE, Preference
from emorl_core.choices.record import Choice, Label
from emorl_core.choices.store import ChoiceStore
from server.api.answers import json_response, service_of
from server.api.documented import errors
from server.api.fields import Body, example
from server.door.bodies import StrictBody
from server.door.errors import RouteNotFound

router = APIRouter(tags=["choices"], route_class=StrictBody)
_ERRORS = errors(400, 401, 404, 408, 413, 415, 421, 422, 431, 500, 503)


class ChoiceBody(Choice, Body):
    """`POST /choices`: the drafts that a person saw side by side, and what became of each. No text."""

    model_config = example(
        user="counselor-7",
        shown=[
            {"weights": {"empathy": 1.0}, "text_sha256": sha256(b"You feel worn out.").hexdigest(), "outcome": "taken"},
            {"weights": {"fluency": 1.0}, "text_sha256": sha256(b"You work a lot.").hexdigest()},
        ],
        reason="warmer",
    )


class Kept(BaseModel):
    model_config = example(id=12)

    id: int = Field(description="Of the choice in the file; it is on disk.")


class LearnBody(Body):
    """`POST /profiles/learn`."""

    model_config = example(user="counselor-7")

    user: Label = Field(description="Whose choices to learn from.")


class Learned(BaseModel):
    """A profile to be: its weights, and how sure they are. Nothing is written to the bundle."""

    model_config = example(
        user="counselor-7",
        choices=20,
        weights={"empathy": 0.7, "fluency": 0.3},
        deviation={"empathy": 0.1, "fluency": 0.1},
        region={"empathy": (0.5, 0.9), "fluency": (0.1, 0.5)},
        credible=CREDIBLE,
    )

    user: str
    choices: int = Field(description="Choices among several drafts that it was learned from.")
    weights: dict[str, float] = Field(description="The posterior's mean.")
    deviation: dict[str, float] = Field(description="Its standard deviation, by objective.")
    region: dict[str, tuple[float, float]] = Field(
        description="Least and most weight in the smallest region that holds `credible` of the posterior."
    )
    credible: float


def _store(request: Request) -> ChoiceStore:
    """Raises `RouteNotFound` where choices are not kept, `ChoicesError`."""
    path = service_of(request).settings.choices_file
    if path is None:
        raise RouteNotFound("choices are not kept here; choices_file is a setting of the server")
    return ChoiceStore(path)


@router.post("/choices", response_model=Kept, responses=_ERRORS)
async def choices(body: ChoiceBody, request: Request) -> Response:
    """Keep which of the shown drafts was taken, edited or rejected, without a word of them; needs `choices_file`."""
    model = service_of(request).deployment().ensemble.name
    kept = await asyncio.to_thread(lambda: _store(request).add(body, model))
    return json_response({"id": kept})


@router.post("/profiles/learn", response_model=Learned, responses=_ERRORS)
async def learn(body: LearnBody, request: Request) -> Response:
    """The weights that a user's choices speak for, with their uncertainty."""
    ensemble = service_of(request).deployment().ensemble

    def work() -> dict[str, object]:
        belief = Preference(ensemble.objectives)
        belief.learn(_store(request).of(body.user, ensemble.name))
        found = belief.result()
        return {
            "user": body.user,
            "choices": found.choices,
            "weights": found.weights,
            "deviation": found.deviation,
            "region": found.region,
            "credible": CREDIBLE,
        }

    return json_response(await asyncio.to_thread(work))
