"""`POST /choices`, `/choices/next` and `/profiles/learn`: which drafts a person took, and the weights learned from
them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.choices.learning import CREDIBLE, LearnedWeights, Preference
from emorl_core.choices.record import Comparison
from emorl_core.choices.store import ChoiceStore
from emorl_core.drafts.spread import spread
from emorl_core.errors import InvalidRequest, InvalidWeights
from emorl_core.frontend import Frontend
from server.api.answers import json_response, service_of
from server.api.choices_models import ChoiceBody, Evidence, Kept, LearnBody, Learned, NextBody, NextPair
from server.api.documented import errors
from server.door.bodies import StrictBody
from server.door.errors import RouteNotFound

router = APIRouter(tags=["choices"], route_class=StrictBody)
_LOOKED_AT = 16  # weights, if the caller gives none
_ERRORS = errors(400, 401, 404, 408, 413, 415, 421, 422, 431, 500, 503)


@router.post("/choices", response_model=Kept, responses=_ERRORS)
async def choices(body: ChoiceBody, request: Request) -> Response:
    """Record which of the shown drafts was taken, edited or rejected, without their text; needs `choices_file`."""
    ensemble = service_of(request).deployment().ensemble

    def work() -> int:
        store = _store(request)
        _check_weights(ensemble, body)
        return store.add(body, ensemble.name)

    return json_response({"id": await asyncio.to_thread(work)})


@router.post("/choices/next", response_model=NextPair, responses=_ERRORS)
async def next_pair(body: NextBody, request: Request) -> Response:
    """The two weight vectors whose drafts to compare next: the choice that is expected to be most informative."""
    ensemble = service_of(request).deployment().ensemble

    def work() -> dict[str, Any]:
        candidates = _candidates(ensemble, body)
        belief = _belief(ensemble, body, request)
        vectors = np.array([belief.vector(each) for each in candidates])
        pair = belief.next_pair(vectors, [(i, j) for i, j in body.without])
        return {"pair": pair, "weights": [candidates[i] for i in pair], "choices": belief.count}

    return json_response(await asyncio.to_thread(work))


@router.post("/profiles/learn", response_model=Learned, responses=_ERRORS)
async def learn(body: LearnBody, request: Request) -> Response:
    """The weights learned from a user's choices, with their uncertainty; stored and served as a profile on request."""
    deployment = service_of(request).deployment()

    def work() -> dict[str, Any]:
        found = _belief(deployment.ensemble, body, request).result()
        if body.store:
            assert body.user is not None  # validated by the model of the body
            deployment.learned.keep(body.user, _profile(found, body.user))
        return {
            "user": body.user,
            "choices": found.choices,
            "weights": found.weights,
            "deviation": found.deviation,
            "region": found.region,
            "outline": found.outline,
            "credible": CREDIBLE,
            "profile": body.user if body.store else None,
        }

    return json_response(await asyncio.to_thread(work))


def _store(request: Request) -> ChoiceStore:
    """Raises `RouteNotFound` where choices are not kept, `ChoicesError`."""
    path = service_of(request).settings.choices_file
    if path is None:
        raise RouteNotFound("choices are not kept here; choices_file is a setting of the server")
    return ChoiceStore(path)


def _belief(ensemble: Frontend, body: Evidence, request: Request) -> Preference:
    """Raises as `_store` where kept choices are asked for; `InvalidRequest`."""
    belief = Preference(ensemble.objectives)
    if body.choices is not None:
        for i, choice in enumerate(body.choices):
            _check_weights(ensemble, choice, f"choices.{i}.")
        belief.learn(body.choices)
    else:
        assert body.user is not None  # validated by the model of the body
        belief.learn(_store(request).of(body.user, ensemble.name))
    return belief


def _check_weights(ensemble: Frontend, choice: Comparison, before: str = "") -> None:
    """Raises `InvalidWeights`: a name that the bundle does not know would be learned from as equal weights."""
    for i, draft in enumerate(choice.shown):
        _resolved(ensemble, draft.weights, f"{before}shown.{i}.weights")


def _candidates(ensemble: Frontend, body: NextBody) -> list[dict[str, float]]:
    """Resolved. Raises `InvalidWeights`, `InvalidRequest`."""
    if body.candidates is None:
        candidates = [ensemble.resolve(each).as_dict() for each in spread(ensemble.objectives, _LOOKED_AT)]
    else:
        candidates = [_resolved(ensemble, each, f"candidates.{i}") for i, each in enumerate(body.candidates)]
    for pair in body.without:
        if max(pair) >= len(candidates) or pair[0] == pair[1]:
            raise InvalidRequest(
                f"without has the pair {list(pair)}; allowed: two different places among {len(candidates)} candidates",
                param="without",
            )
    return candidates


def _resolved(ensemble: Frontend, weights: Mapping[str, float], field: str) -> dict[str, float]:
    """Raises `InvalidWeights`, which names the field."""
    try:
        return ensemble.resolve(weights).as_dict()
    except InvalidWeights as error:
        raise InvalidWeights(f"{field}: {error.message}", param=field) from None


def _profile(found: LearnedWeights, user: str) -> ProfileSpec:
    """Raises `InvalidRequest` where there is nothing to learn from."""
    if not found.choices:
        raise InvalidRequest(
            "store is true, but the user has no choices among several drafts of this bundle", param="user"
        )
    return ProfileSpec(weights=found.weights, origin=found.origin("POST /profiles/learn", user))
