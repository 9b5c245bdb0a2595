"""The host names that a server answers to. A foreign page can make its own name resolve to this server (DNS rebinding),
and browsers then treat both as one site; only the Host header reveals it."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.door.auth import OPEN_PATHS
from server.door.errors import HostNotAllowed, error_response
from server.settings import HOST_NAME

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADER = re.compile(rf"({HOST_NAME})(?::\d*)?")


class HostMiddleware:
    """421 for a request to another host than `allowed`, whatever its port. Probes answer any host, since probing
    happens by address."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(Headers(scope=scope).getlist("host")):
            await self.app(scope, receive, send)
            return
        error = HostNotAllowed("the Host header names no host of this server; see its allowed_hosts", param="host")
        await error_response(error)(scope, receive, send)

    def _knows(self, sent: list[str]) -> bool:
        found = _HEADER.fullmatch(sent[0]) if len(sent) == 1 else None
        return found is not None and found[1].lower() in self._allowed
