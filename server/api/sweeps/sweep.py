"""`POST /sweep`: many weight vectors on the same prompts, sharing every common prefix."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.engine.sweep import SweepItem, SweepPlan
from emorl_core.frontend import Frontend
from emorl_core.types import Completion, Event
from emorl_core.types import Request as EngineRequest
from server.api.answers import json_response, service_of
from server.api.documented import GENERATION_ERRORS, errors, streamed
from server.api.events import TypedEvents
from server.api.scores import check_scored, scores_of
from server.api.sweeps.sweep_models import SweepRequest, SweepResponse, sweep_answer, sweep_item
from server.door.bodies import StrictBody
from server.serving import sse
from server.serving.bulk import MANY
from server.serving.deployment import Deployment
from server.serving.receipt import Sent

router = APIRouter(tags=["native"], route_class=StrictBody)

_STREAM_EXAMPLE = (
    'data: {"type":"item","prompt":0,"weights":3,"text":"You feel …","finish_reason":"stop","completed":1,"total":66}'
    "\n\n"
    'data: {"type":"done","id":"sweep-0f3a","results":[…],…}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    "/sweep",
    response_model=SweepResponse,
    responses={200: streamed(_STREAM_EXAMPLE), **errors(*GENERATION_ERRORS)},
)
async def sweep(body: SweepRequest, request: Request) -> Response:
    """Every prompt under every weight vector; with `stream: true` each result as it finishes."""
    service = service_of(request)
    settings = service.settings

    def build(ensemble: Frontend) -> SweepPlan:
        if body.score:
            check_scored(service.deployment())
        return body.plan(ensemble, max_new_tokens=settings.max_new_tokens, max_sweep=settings.max_sweep)

    # Each prompt takes one place of the queue; the branches they fork into use only free slots.
    rows = min(body.count, service.admission.slots)
    many = body.count > MANY
    generation, plan = await service.accept_built(request, lambda _: body.said, build, _requests_of, rows, many=many)

    async def judged(answer: dict[str, Any]) -> None:
        if body.score:
            await _add_scores(generation.deployment, body, answer)

    dialect = SweepDialect(f"sweep-{secrets.token_hex(12)}", generation.deployment.ensemble.name, plan, judged)
    if body.stream:
        return await sse.stream(generation, dialect, settings)
    await asyncio.to_thread(_take_all, dialect, await generation.finish())
    await dialect.settle()
    return await asyncio.to_thread(lambda: json_response(dialect.answer()))


def _take_all(dialect: SweepDialect, completions: Sequence[Completion]) -> None:
    for completion in completions:
        dialect.take(completion)


async def _add_scores(deployment: Deployment, body: SweepRequest, answer: dict[str, Any]) -> None:
    """The scores of every distinct text of each prompt."""
    asked: list[Sent] = [*(body.prompts or body.every_chat or [body.chat or ""])]
    texts = [(sent, text) for sent, own in zip(asked, answer["results"], strict=True) for text in own]
    scores = await scores_of(deployment, [sent for sent, _ in texts], [text["text"] for _, text in texts])
    for (_, text), own in zip(texts, scores, strict=True):
        text.update(own)


def _requests_of(plan: SweepPlan) -> list[EngineRequest]:
    return [each for group in plan.groups() for each in group]


class SweepDialect(TypedEvents):
    """`{"type": "item", …}` for every prompt and vector as it finishes, then `{"type": "done", …the answer…}`."""

    def __init__(
        self, sweep_id: str, model: str, plan: SweepPlan, judged: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self._id = sweep_id
        self._model = model
        self._plan = plan
        self._judged = judged  # adds scores to the answer
        self._answer: dict[str, Any] = {}

    def take(self, completion: Completion) -> list[SweepItem]:
        return self._plan.take(completion)

    def answer(self) -> dict[str, Any]:
        """Call it after `settle`."""
        return self._answer

    def _built(self) -> dict[str, Any]:
        return sweep_answer(self._id, self._model, self._plan, self._plan.result())

    async def settle(self) -> None:
        # Off the event loop: the answer to thousands of completions takes long to build.
        self._answer = await asyncio.to_thread(self._built)
        await self._judged(self._answer)

    def event(self, event: Event) -> bytes:
        assert isinstance(event, Completion)  # the requests of a sweep stream no tokens
        return b"".join(sse.data(sweep_item(item, self._plan)) for item in self.take(event))
