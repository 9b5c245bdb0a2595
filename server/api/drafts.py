"""`POST /drafts`: a few good and different texts to choose from. `auto` on `POST /generate` takes the best of them."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.drafts.plan import Drafts, DraftsPlan
from emorl_core.frontend import Frontend
from emorl_core.types import Completion, Event
from server.api.answers import json_response, service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.drafts_models import DraftsRequest, DraftsResponse, chosen_among, draft_text, found_text
from server.api.events import TypedEvents
from server.api.scores import scores_of
from server.door.bodies import StrictBody
from server.serving import sse
from server.serving.deployment import Deployment
from server.serving.receipt import Sent, make_receipt

router = APIRouter(tags=["native"], route_class=StrictBody)

_STREAM_EXAMPLE = (
    'data: {"type":"text","text":"You feel …","weights":{"empathy":1.0,…},"completed":3,"total":16,…}\n\n'
    'data: {"type":"done","id":"drafts-0f3a","drafts":[…],…}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/drafts",
    response_model=DraftsResponse,
    responses={200: streamed(_STREAM_EXAMPLE), **errors(*GENERATION_ERRORS)},
)
async def drafts(body: DraftsRequest, request: Request) -> Response:
    """A few good and different texts to choose from, best first, out of one sweep over a spread of weights."""
    service = service_of(request)
    settings = service.settings
    drafts_id = f"drafts-{secrets.token_hex(12)}"

    def build(ensemble: Frontend) -> DraftsPlan:
        return body.plan(ensemble, drafts_id, max_new_tokens=settings.max_new_tokens, max_sweep=settings.max_sweep)

    generation, plan = await service.accept_built(request, lambda _: body.said, build, lambda plan: plan.requests)
    sent = body.chat or body.prompt or ""  # exactly one is given
    dialect = DraftsDialect(drafts_id, generation.deployment, plan, sent, receipts=body.receipt)
    if body.stream:
        return await sse.stream(generation, dialect, settings)
    for completion in await generation.finish():
        plan.take(completion)
    await dialect.settle()
    return json_response(dialect.answer())


@dataclass(frozen=True, slots=True)
class Judged:
    """`scores`: `TextScores` of every distinct text; empty if this server has no scorers."""

    drafts: Drafts
    scores: dict[str, dict[str, Any]]


async def choose(deployment: Deployment, plan: DraftsPlan, sent: Sent) -> Judged:
    """Score a plan's texts, if there are scorers, and choose drafts; call it once every completion has been taken."""
    texts = await asyncio.to_thread(plan.texts)
    if not deployment.scoring.names:
        return Judged(await asyncio.to_thread(plan.choose, None), {})
    scores = await scores_of(deployment, [sent] * len(texts), texts)
    found = await asyncio.to_thread(plan.choose, [each["scores"] for each in scores])
    return Judged(found, dict(zip(texts, scores, strict=True)))


class DraftsDialect(TypedEvents):
    """`{"type": "text", …}` for every generated text, then `{"type": "done", …the answer…}`."""

    def __init__(self, drafts_id: str, deployment: Deployment, plan: DraftsPlan, sent: Sent, *, receipts: bool) -> None:
        self._id = drafts_id
        self._deployment = deployment
        self._plan = plan
        self._sent = sent
        self._receipts = receipts
        self._answer: dict[str, Any] = {}

    def answer(self) -> dict[str, Any]:
        """Call it after `settle`."""
        return self._answer

    async def settle(self) -> None:
        judged = await choose(self._deployment, self._plan, self._sent)
        self._answer = await asyncio.to_thread(self._built, judged)

    def _built(self, judged: Judged) -> dict[str, Any]:
        deployment = self._deployment
        ensemble, identity = deployment.ensemble, deployment.identity
        texts = []
        for draft in judged.drafts.drafts:
            receipt = None
            if self._receipts:
                receipt = make_receipt(ensemble, identity, self._sent, draft.request, draft.completion)
            texts.append(draft_text(draft, judged.scores.get(draft.text, {}), receipt))
        return {
            "id": self._id,
            "model": ensemble.name,
            "drafts": texts,
            "seed": judged.drafts.seed,
            **chosen_among(judged.drafts),
        }

    def event(self, event: Event) -> bytes:
        assert isinstance(event, Completion)  # the requests of a sweep stream no tokens
        self._plan.take(event)
        return sse.data(found_text(event, self._plan))
