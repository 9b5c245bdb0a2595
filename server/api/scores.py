"""`POST /score`, and the scores of generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.errors import InvalidRequest
from emorl_core.frontend import Frontend
from emorl_core.text.chat import Message, last_said
from server.api.answers import json_response, service_of
from server.api.documented import errors
from server.api.fields import check_limit
from server.api.scores_models import ScoreRequest, ScoreResponse
from server.door.bodies import StrictBody
from server.serving.deployment import Deployment
from server.serving.receipt import Sent

router = APIRouter(tags=["native"], route_class=StrictBody)


@router.post("/score", response_model=ScoreResponse, responses=errors(400, 401, 408, 413, 415, 421, 422, 431, 500, 503))
async def score(body: ScoreRequest, request: Request) -> Response:
    """Score given texts as replies to a prompt or chat; nothing is generated."""
    service = service_of(request)
    check_limit("texts", len(body.texts), service.settings.max_sweep)
    with service.borrowed() as deployment:
        check_scored(deployment)
        sent = body.chat or body.prompt or ""  # exactly one is given
        results = await scores_of(deployment, [sent] * len(body.texts), body.texts)
        return json_response({"model": deployment.ensemble.name, "results": results})


def check_scored(deployment: Deployment) -> None:
    """Raises InvalidRequest if this server has no scorers."""
    if not deployment.scoring.names:
        raise InvalidRequest(
            "this server has no scorers: its bundle names none, or its setting score is off", param="score"
        )


async def scores_of(deployment: Deployment, sent: Sequence[Sent], texts: Sequence[str]) -> list[dict[str, Any]]:
    """`Scores` of each text as plain dictionaries; text i answers `sent[i]`."""
    prompts = [statement_of(each, deployment.ensemble) for each in sent]
    return [scores.as_dict() for scores in await deployment.scoring.score(prompts, texts)]


def statement_of(sent: Sent, ensemble: Frontend) -> str:
    """The prompt that scorers get; for a chat, the last user message."""
    if isinstance(sent, str):
        return sent
    messages = [each for each in sent if isinstance(each, Message)]
    if not messages:
        return ensemble.tokenizer.decode([each for each in sent if isinstance(each, int)])
    return last_said(messages)
