"""Middleware around every HTTP request: its id, its log line, and the last error handler.

Plain ASGI, so that disconnects stay visible.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.door.errors import InternalError, error_response
from server.watch.logs import where

if TYPE_CHECKING:
    from server.serving.generation import Generation
    from server.watch.metrics import Metrics
    from server.watch.tracing import Tracing

logger = logging.getLogger("emorl.access")

_OWN = ("/generate", "/sweep", "/sweep/line", "/sweep/map", "/drafts")
GENERATION_ROUTES = (*_OWN, "/v1/completions", "/v1/chat/completions")
NOT_DRAFTED = "not_drafted"  # an outcome
_SCOPE_KEY = "emorl.context"
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(slots=True)
class RequestContext:
    """The state of one HTTP request."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    key: str | None = None  # name of the API key, filled in by `server.door.auth`
    generation: Generation | None = None  # filled in by `Service.accept`
    not_drafted: str | None = None  # the policy's reason, filled in by `Service.accept`
    status: int = 0


def context_of(scope: Scope) -> RequestContext:
    context = scope[_SCOPE_KEY]
    assert isinstance(context, RequestContext)
    return context


def request_id_from(headers: Headers) -> str:
    """The caller's `X-Request-ID` when it is well-formed, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _WELL_FORMED_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


class ContextMiddleware:
    """Outermost: gives the request its id, logs it, answers 500 for uncaught exceptions, and releases what it still
    holds."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, generation_routes: frozenset[str], tracing: Tracing | None = None
    ) -> None:
        self.app = app
        self._tracing = tracing
        self._metrics = metrics
        self._generation_routes = generation_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = scope[_SCOPE_KEY] = RequestContext(request_id_from(Headers(scope=scope)))

        async def send_framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_framed)
        except Exception as error:  # noqa: BLE001  the last net; the text of a foreign exception stays inside
            logger.error("request %s failed: %s", context.request_id, where(error))
            if context.status == 0:
                response = error_response(InternalError("the server failed on this request"))
                await response(scope, receive, send_framed)
            else:
                raise BrokenAnswer from None  # the server closes the connection: the client sees it was cut short
        finally:
            if context.generation is not None:
                context.generation.close()
            self._count(scope, context)
            self._tell(scope, context)

    def _count(self, scope: Scope, context: RequestContext) -> None:
        if scope["method"] != "POST" or scope["path"] not in self._generation_routes:
            return
        if context.generation is not None:
            outcome = context.generation.outcome
        elif context.not_drafted is not None:
            outcome = NOT_DRAFTED
            self._metrics.not_drafted.labels(context.not_drafted).inc()
        else:
            outcome = "error" if context.status in (0, 500) else "rejected"
        self._metrics.requests.labels(scope["path"], outcome).inc()

    def _tell(self, scope: Scope, context: RequestContext) -> None:
        """Write the log line and the trace, with the configured route and never the path or method as sent, which can
        contain anything."""
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"  # as OpenTelemetry's conventions spell it
        route = getattr(scope.get("route"), "path", "-")
        generation = context.generation
        facts: dict[str, Any] = {
            "request_id": context.request_id,
            "method": method,
            "route": route,
            "status": context.status,
            "seconds": round(time.perf_counter() - context.started, 4),
        }
        if context.key is not None:
            facts["key"] = context.key
        if generation is not None:
            facts["outcome"] = generation.outcome
            facts["tokens"] = generation.tokens
        if context.not_drafted is not None:
            facts |= {"outcome": NOT_DRAFTED, "reason": context.not_drafted}
        # Finished generations are always logged; other lines are rate-limited (log_lines_per_s).
        finished = generation is not None and generation.outcome in ("stop", "length")
        kind = None if finished else f"{context.status // 100}xx"
        line = " ".join(f"{name}={value}" for name, value in facts.items())
        logger.info(line, extra={"facts": facts, "kind": kind})
        if self._tracing is not None and route in self._generation_routes:
            attributes: dict[str, str | int] = {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": context.status,
                "emorl.request_id": context.request_id,
            }
            if context.not_drafted is not None:
                attributes |= {"emorl.outcome": NOT_DRAFTED, "emorl.reason": context.not_drafted}
            if generation is not None:
                attributes |= {"emorl.outcome": generation.outcome, "emorl.tokens": generation.tokens}
            self._tracing.record(scope, context.started, attributes, generation)


class BrokenAnswer(Exception):
    """An answer that failed after its first byte; it has already been logged, without its text."""
