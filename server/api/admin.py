"""`/admin/…`: for operators, with separate keys (see `server.door.auth`)."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from server.api.answers import json_response, service_of
from server.api.documented import errors
from server.api.fields import example

router = APIRouter(prefix="/admin", tags=["admin"])


class Reloaded(BaseModel):
    model_config = example(
        status="reloaded",
        model="counselor-demo",
        objectives=["base", "reflection", "empathy"],
        profiles=["balanced"],
        seconds=6.2,
    )

    status: Literal["reloaded"]
    model: str
    objectives: list[str]
    profiles: list[str]
    seconds: float


@router.post("/reload", response_model=Reloaded, responses=errors(401, 403, 409, 421))
async def reload(request: Request) -> Response:
    """Load the bundle again: new profiles, retrained adapters. Running requests finish with the bundle they started
    with."""
    started = time.perf_counter()
    ensemble = (await service_of(request).reload()).ensemble
    return json_response(
        {
            "status": "reloaded",
            "model": ensemble.name,
            "objectives": list(ensemble.lanes),
            "profiles": list(ensemble.profiles),
            "seconds": round(time.perf_counter() - started, 3),
        }
    )
