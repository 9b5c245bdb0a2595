"""Strict JSON bodies: a repeated key is refused, where most parsers silently take the last one."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from emorl_core.files.documents import RepeatedKey, distinct


class StrictBody(APIRoute):
    """A route with a strictly parsed body; for `APIRouter(route_class=…)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return strictly


class _Strict(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return json.loads(body, object_pairs_hook=distinct)
        except RepeatedKey as error:
            raise json.JSONDecodeError(str(error), "", 0) from None  # FastAPI's error for a malformed body
