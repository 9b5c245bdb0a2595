"""`POST /sweep/map`: all mixes of three weight vectors, exactly."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.engine.regions import MapCompletion, MapRequest
from emorl_core.types import Completion, Event, RegionFound
from server.api.answers import service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.sweeps.exact import ExactDialect, answered
from server.api.sweeps.map_models import MapBody, MapResponse, map_answer, region_text
from server.door.bodies import StrictBody

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
    limit = service_of(request).settings.sweep_map_timeout_s
    return await answered(request, body, "map", limit, MapDialect)


class MapDialect(ExactDialect[MapRequest]):
    """`{"type": "region", …}` for every region as it is found."""

    def found(self, event: Event) -> dict[str, Any]:
        assert isinstance(event, RegionFound)
        return {"type": "region", **region_text(event.region, self.request.resolution)}

    def whole(self, completion: Completion) -> dict[str, Any]:
        assert isinstance(completion, MapCompletion)
        return map_answer(self.model, self.lanes, self.request, completion)
