"""`POST /generate`: the native API."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.drafts.plan import DraftsPlan
from emorl_core.frontend import Frontend
from emorl_core.types import Completion, Event, TokenEvent
from emorl_core.types import Request as EngineRequest
from server.api.answers import json_response, service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.drafts import choose
from server.api.drafts_models import chosen_among
from server.api.events import TypedEvents
from server.api.generate_models import GenerateRequest, GenerateResponse, answer, attribution_of, finite
from server.api.scores import check_scored, scores_of
from server.door.bodies import StrictBody
from server.serving import sse
from server.serving.receipt import make_receipt

router = APIRouter(tags=["native"], route_class=StrictBody)

_STREAM_EXAMPLE = (
    'data: {"type":"token","index":0,"id":71,"text":"You","logprob":-0.2}\n\n'
    'data: {"type":"done","id":"gen-0f3a","text":"You feel …",…}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/generate",
    response_model=GenerateResponse,
    responses={200: streamed(_STREAM_EXAMPLE), **errors(*GENERATION_ERRORS)},
)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Generate one text, steered by weights or a profile; with `stream: true` token by token. With weights `auto`, the
    best draft."""
    service = service_of(request)
    settings = service.settings
    request_id = f"gen-{secrets.token_hex(12)}"
    sent = body.chat or body.prompt or ""  # exactly one is given

    def build(ensemble: Frontend) -> EngineRequest | DraftsPlan:
        if body.score:
            check_scored(service.deployment())
        limit = settings.max_new_tokens
        if body.weights == "auto":
            return body.plan(ensemble, request_id, max_new_tokens=limit, max_sweep=settings.max_sweep)
        return body.to_core(ensemble, request_id, max_new_tokens=limit)

    generation, built = await service.accept_built(request, lambda _: body.said, build, _requests_of)
    ensemble, identity = generation.deployment.ensemble, generation.deployment.identity

    def finished(completion: Completion, made_of: EngineRequest) -> dict[str, Any]:
        content = answer(completion, ensemble.name, ensemble.lanes)
        if body.receipt:
            receipt = make_receipt(ensemble, identity, sent, made_of, completion)
            content["receipt"] = receipt.model_dump(mode="json")
        return content

    async def judged(completion: Completion) -> dict[str, Any]:
        if not body.score:
            return {}
        (scores,) = await scores_of(generation.deployment, [sent], [completion.text])
        return scores

    if isinstance(built, DraftsPlan):
        for completion in await generation.finish():
            built.take(completion)
        found = await choose(generation.deployment, built, sent)
        best = found.drafts.drafts[0]
        content = finished(best.completion, best.request) | {"chosen": chosen_among(found.drafts)}
        return json_response(content | (found.scores[best.text] if body.score else {}))
    if body.stream:
        dialect = NativeDialect(ensemble.lanes, lambda completion: finished(completion, built), judged)
        return await sse.stream(generation, dialect, settings)
    (completion,) = await generation.finish()
    return json_response(finished(completion, built) | await judged(completion))


def _requests_of(built: EngineRequest | DraftsPlan) -> Sequence[EngineRequest]:
    return built.requests if isinstance(built, DraftsPlan) else [built]


class NativeDialect(TypedEvents):
    """`{"type": "token", …}` for every token, then `{"type": "done", …the answer…}` or `{"type": "error", …}`."""

    def __init__(
        self,
        lanes: Sequence[str],
        finished: Callable[[Completion], dict[str, Any]],
        judged: Callable[[Completion], Awaitable[dict[str, Any]]],
    ) -> None:
        self._lanes = lanes
        self._finished = finished  # completion -> the answer
        self._judged = judged  # completion -> the answer's scores
        self._scores: dict[str, Any] = {}
        self._done: Completion | None = None

    def event(self, event: Event) -> bytes:
        if isinstance(event, Completion):
            self._done = event
            return b""
        assert isinstance(event, TokenEvent)
        payload: dict[str, Any] = {
            "type": "token",
            "index": event.index,
            "id": event.token_id,
            "text": event.text,
            "logprob": finite(event.logprob),
        }
        if event.attribution is not None:
            payload["attribution"] = attribution_of(event.attribution, self._lanes)
        return sse.data(payload)

    def answer(self) -> dict[str, Any]:
        assert self._done is not None
        return self._finished(self._done) | self._scores

    async def settle(self) -> None:
        assert self._done is not None
        self._scores = await self._judged(self._done)
