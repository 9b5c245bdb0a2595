"""Helpers shared by all routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from server.serving.service import Service


def service_of(request: Request) -> Service:
    """The service that `create_app` attached to the app."""
    service: Service = request.app.state.service
    return service


def json_response(content: Any, status: int = 200) -> JSONResponse:
    """Answers contain a client's words, so no cache may store them."""
    return JSONResponse(content, status, {"Cache-Control": "no-store"})
