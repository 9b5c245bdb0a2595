"""`GET /`: the playground page and its files.

The files are read once, into a table of exact paths; nothing that a client sends is ever joined to a path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

FOLDER = Path(__file__).parent.parent / "playground"
PREFIX = "/playground/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only resources from this server, nothing inline; Trusted Types block text that would be parsed as HTML or script.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # cached, but revalidated with If-None-Match
}


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    type: str
    etag: str


def read_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Path -> file; `/` is the page itself. Files of other types are left out."""
    assets: dict[str, Asset] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in _TYPES:
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            path = "/" if file.name == "index.html" else PREFIX + file.name
            assets[path] = Asset(body, _TYPES[file.suffix], etag)
    return assets


def make_router(assets: dict[str, Asset]) -> APIRouter:
    """One route per file. They are not part of the API, so the OpenAPI document leaves them out."""
    router = APIRouter()
    for path, asset in assets.items():
        router.add_api_route(path, _endpoint(asset), methods=["GET"], include_in_schema=False)
    return router


def _endpoint(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    headers = {**_HEADERS, "ETag": asset.etag}

    async def serve(request: Request) -> Response:
        if _knows(request.headers.get("if-none-match", ""), asset.etag):
            return Response(status_code=304, headers=headers)
        return Response(asset.body, headers=headers, media_type=asset.type)

    return serve


def _knows(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with any entity tag of a list, or with `*`."""
    known = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    return "*" in known or etag in known
