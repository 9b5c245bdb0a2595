"""`POST /sweep/map`: all mixes of three weight vectors, exactly."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.engine.regions import MapCompletion, MapRequest
from emorl_core.ensemble import Ensemble
from emorl_core.types import Completion, RegionFound
from server.api.answers import json_response, service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.events import TypedEvents
from server.api.map_models import MapBody, MapResponse, map_answer, region_text
from server.door.bodies import StrictBody
from server.serving import sse

router = APIRouter(tags=["native"], route_class=StrictBody)

_STREAM_EXAMPLE = (
    'data: {"type":"region","polygon":[[1.0,0.0,0.0],[0.58,0.42,0.0],[0.58,0.0,0.42]],"points":[],"text":"You …",…}\n\n'
    'data: {"type":"done","id":"map-0f3a","exact":true,"regions":[…],…}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/sweep/map",
    response_model=MapResponse,
    responses={200: streamed(_STREAM_EXAMPLE), **errors(*GENERATION_ERRORS)},
)
async def sweep_map(body: MapBody, request: Request) -> Response:
    """Every greedy text of all mixes of three weight vectors, with exact borders; beyond its limits, on a grid."""
    service = service_of(request)
    settings = service.settings

    def build(ensemble: Ensemble) -> MapRequest:
        return body.to_core(
            ensemble,
            f"map-{secrets.token_hex(12)}",
            max_new_tokens=settings.max_new_tokens,
            max_sweep=settings.max_sweep,
            time_limit_s=settings.sweep_map_timeout_s,
        )

    generation, asked = await service.accept_built(request, lambda _: body.said, build, lambda asked: [asked])
    ensemble = generation.deployment.ensemble
    dialect = MapDialect(asked, ensemble.name, ensemble.lanes)
    if body.stream:
        return await sse.stream(generation, dialect, settings)
    (completion,) = await generation.finish()
    dialect.event(completion)
    await dialect.settle()
    return await asyncio.to_thread(lambda: json_response(dialect.answer()))


class MapDialect(TypedEvents):
    """`{"type": "region", …}` for every region as it is found, one last `{"type": "done", …the answer…}`."""

    def __init__(self, request: MapRequest, model: str, lanes: Sequence[str]) -> None:
        self._request = request
        self._model = model
        self._lanes = lanes
        self._done: Completion | None = None
        self._answer: dict[str, Any] = {}

    def answer(self) -> dict[str, Any]:
        """Once it is settled."""
        return self._answer

    def _built(self) -> dict[str, Any]:
        assert isinstance(self._done, MapCompletion)
        return map_answer(self._model, self._lanes, self._request, self._done)

    async def settle(self) -> None:
        # Off the event loop: thousands of regions take long to write.
        self._answer = await asyncio.to_thread(self._built)

    def event(self, event: RegionFound | Completion) -> bytes:
        if isinstance(event, RegionFound):
            return sse.data({"type": "region", **region_text(event.region, self._request.resolution)})
        self._done = event
        return b""
