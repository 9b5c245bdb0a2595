"""The OpenAPI document: FastAPI's, corrected where this server differs from FastAPI's defaults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from server.door.auth import OPEN_PATHS

_FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")


def document(app: FastAPI, root_path: str = "") -> Callable[[], dict[str, Any]]:
    """The replacement for `app.openapi`, generated on first use. root_path: prefix that clients put before a path."""
    servers = [{"url": root_path}] if root_path else None

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    servers=servers,
                )
            )
        return app.openapi_schema

    return openapi


def make_router(app: FastAPI) -> APIRouter:
    """`GET /openapi.json`. The document is rendered once, off the event loop, since it takes most of a second;
    FastAPI's own route would render it for every request."""
    router = APIRouter()
    rendering, rendered = asyncio.Lock(), b""

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response:
        nonlocal rendered
        async with rendering:
            rendered = rendered or await asyncio.to_thread(
                lambda: json.dumps(app.openapi(), ensure_ascii=False).encode()
            )
        return Response(rendered, media_type="application/json")

    return router


def _corrected(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema["components"]
    for name in _FASTAPI_ERRORS:  # validation errors use the common body, under the status that each route declares
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "Asked for when the server has API keys."}
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            for response in operation["responses"].values():
                content = response.get("content", {})
                if len(content) > 1 and content.get("application/json") == {"schema": {}}:
                    del content["application/json"]  # FastAPI's guess for a route that names its own media type
                for media in content.values():
                    if "error" in (example := media.get("example", {})):
                        example["error"].setdefault("param", None)  # FastAPI leaves out what is null
            if path not in OPEN_PATHS:
                operation["security"] = [{}, {"key": []}]
    return schema
