"""`POST /sweep/line`: all weights between two vectors, exactly."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.engine.segments import SegmentsCompletion, SegmentsRequest
from emorl_core.types import Completion, Event, IntervalFound
from server.api.answers import service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.sweeps.exact import ExactDialect, answered
from server.api.sweeps.segments_models import SegmentsBody, SegmentsResponse, segment_text, segments_answer
from server.door.bodies import StrictBody

router = APIRouter(tags=["native"], route_class=StrictBody)

_STREAM_EXAMPLE = (
    'data: {"type":"interval","start":0.0,"end":0.4183,"text":"You feel …","finish_reason":"stop",…}\n\n'
    'data: {"type":"done","id":"line-0f3a","intervals":[…],…}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/sweep/line",
    response_model=SegmentsResponse,
    responses={200: streamed(_STREAM_EXAMPLE), **errors(*GENERATION_ERRORS)},
)
async def sweep_line(body: SegmentsBody, request: Request) -> Response:
    """Every greedy text between two weight vectors and the exact places where it changes."""
    limit = service_of(request).settings.sweep_line_timeout_s
    return await answered(request, body, "line", limit, SegmentsDialect)


class SegmentsDialect(ExactDialect[SegmentsRequest]):
    """`{"type": "interval", …}` for every interval as it is found."""

    def found(self, event: Event) -> dict[str, Any]:
        assert isinstance(event, IntervalFound)
        return {"type": "interval", **segment_text(event.interval)}

    def whole(self, completion: Completion) -> dict[str, Any]:
        assert isinstance(completion, SegmentsCompletion)
        return segments_answer(self.model, self.lanes, self.request, completion)
