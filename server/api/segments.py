"""`POST /sweep/line`: all weights between two vectors, exactly."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.engine.segments import SegmentsCompletion, SegmentsRequest
from emorl_core.ensemble import Ensemble
from emorl_core.types import Completion, IntervalFound
from server.api.answers import json_response, service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.events import TypedEvents
from server.api.segments_models import SegmentsBody, SegmentsResponse, segment_text, segments_answer
from server.door.bodies import StrictBody
from server.serving import sse

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
    service = service_of(request)
    settings = service.settings

    def build(ensemble: Ensemble) -> SegmentsRequest:
        return body.to_core(
            ensemble,
            f"line-{secrets.token_hex(12)}",
            max_new_tokens=settings.max_new_tokens,
            max_sweep=settings.max_sweep,
            time_limit_s=settings.sweep_line_timeout_s,
        )

    generation, asked = await service.accept_built(request, lambda _: body.said, build, lambda asked: [asked])
    ensemble = generation.deployment.ensemble
    dialect = SegmentsDialect(asked, ensemble.name, ensemble.lanes)
    if body.stream:
        return await sse.stream(generation, dialect, settings)
    (completion,) = await generation.finish()
    dialect.event(completion)
    return json_response(dialect.answer())


class SegmentsDialect(TypedEvents):
    """`{"type": "interval", …}` for every interval as it is found, one last `{"type": "done", …the answer…}`."""

    def __init__(self, request: SegmentsRequest, model: str, lanes: Sequence[str]) -> None:
        self._request = request
        self._model = model
        self._lanes = lanes
        self._done: Completion | None = None

    def answer(self) -> dict[str, Any]:
        assert isinstance(self._done, SegmentsCompletion)
        return segments_answer(self._model, self._lanes, self._request, self._done)

    def event(self, event: IntervalFound | Completion) -> bytes:
        if isinstance(event, IntervalFound):
            return sse.data({"type": "interval", **segment_text(event.interval)})
        self._done = event
        return b""
