"""EmorlError -> status and body: the only place with status codes.

Every answer that is not a success has the body `{"error": {"message", "type", "param", "code"}}`; with `reason` and
`notice` added when a policy refuses a draft. Messages come from errors that this project raised on purpose; the message
of any other exception never leaves the process, because it may contain a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from emorl_core.errors import BundleError, EmorlError, EngineError, InvalidRequest, NonFinite, OutOfMemory
from emorl_core.policy import FAILED

OPENAI_PREFIX = "/v1/"


class Unauthorized(EmorlError):
    code = "invalid_api_key"


class Forbidden(EmorlError):
    code = "forbidden"


class UnknownModel(InvalidRequest):
    code = "model_not_found"


class RouteNotFound(EmorlError):
    code = "not_found"


class MethodNotAllowed(EmorlError):
    code = "method_not_allowed"


class HostNotAllowed(EmorlError):
    """The request is for another host than those of `allowed_hosts`."""

    code = "host_not_allowed"


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class UnknownField(InvalidRequest):
    code = "unknown_field"


class MissingField(InvalidRequest):
    code = "missing_field"


class NotDrafted(InvalidRequest):
    """The operator's policy allows no draft for this. `reason`: one of `emorl_core.policy`; `notice`: for people."""

    code = "not_drafted"

    def __init__(self, notice: str, *, reason: str = FAILED) -> None:
        super().__init__(" ".join(notice.split()))
        self.reason = reason
        self.notice = notice


class UnsupportedMediaType(EmorlError):
    code = "unsupported_media_type"


class BodyTooLarge(EmorlError):
    code = "body_too_large"


class HeadersTooLarge(EmorlError):
    code = "headers_too_large"


class InvalidHttp(EmorlError):
    """The bytes received are not an HTTP request."""

    code = "invalid_http"


class ReadTimeout(EmorlError):
    """The client took too long to send its body."""

    code = "read_timeout"


class QueueFull(EmorlError):
    """No permit left. `retry_after_s`: when one is likely."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KeyLimit(QueueFull):
    """One API key has as many requests in progress as it may."""

    code = "key_limit"


class QueueTimeout(EmorlError):
    """Waited longer than `queue_timeout_s` for a slot."""

    code = "queue_timeout"


class NotReady(EmorlError):
    """Loading, warming up or restarting."""

    code = "not_ready"


class ShuttingDown(EmorlError):
    code = "shutting_down"


class EngineRestarted(EmorlError):
    """The engine's thread died under this request and was started again."""

    code = "engine_restarted"


class ReloadFailed(EmorlError):
    """The new bundle was refused; the old one stays in service."""

    code = "reload_failed"


class ClientGone(EmorlError):
    """The client disconnected; nobody reads this answer."""

    code = "client_gone"


class ClientTooSlow(EmorlError):
    """The client reads its stream too slowly; its unread events were dropped."""

    code = "client_too_slow"


class InternalError(EmorlError):
    code = "internal_error"


@dataclass(frozen=True, slots=True)
class Rule:
    """The response to one kind of error. `message` replaces the error's own where that could contain foreign text."""

    status: int
    type: str
    retry_after_s: int | None = None
    repeats: bool = False  # the same request would fail again, so clients are told not to retry
    message: str | None = None


_INVALID = "invalid_request_error"
_RULES: dict[type[EmorlError], Rule] = {
    InvalidRequest: Rule(422, _INVALID),
    NotDrafted: Rule(422, "policy_error", repeats=True),
    InvalidJson: Rule(400, _INVALID),
    UnknownModel: Rule(404, _INVALID),
    RouteNotFound: Rule(404, _INVALID),
    MethodNotAllowed: Rule(405, _INVALID),
    BodyTooLarge: Rule(413, _INVALID),
    HostNotAllowed: Rule(421, _INVALID),
    HeadersTooLarge: Rule(431, _INVALID),
    InvalidHttp: Rule(400, _INVALID),
    ReadTimeout: Rule(408, _INVALID),
    UnsupportedMediaType: Rule(415, _INVALID),
    Unauthorized: Rule(401, "authentication_error"),
    Forbidden: Rule(403, "permission_error"),
    QueueFull: Rule(429, "rate_limit_error", retry_after_s=1),
    QueueTimeout: Rule(503, "service_unavailable_error", retry_after_s=1),
    NotReady: Rule(503, "service_unavailable_error", retry_after_s=2),
    ShuttingDown: Rule(503, "service_unavailable_error", retry_after_s=5),
    EngineRestarted: Rule(503, "service_unavailable_error", retry_after_s=1),
    ClientGone: Rule(499, "client_closed_request"),
    ClientTooSlow: Rule(408, _INVALID),
    ReloadFailed: Rule(409, "reload_error", repeats=True),
    BundleError: Rule(500, "server_error", repeats=True),
    OutOfMemory: Rule(
        503,
        "server_error",
        retry_after_s=1,
        message="the device had no memory left for this request; send a shorter prompt or fewer tokens, or try again",
    ),
    NonFinite: Rule(
        500,
        "server_error",
        repeats=True,
        message="the model produced numbers that are not finite for this request; other weights may work",
    ),
    EngineError: Rule(500, "server_error", repeats=True, message="the engine failed on this request"),
    EmorlError: Rule(500, "server_error", message="the server failed on this request"),
}


def rule_for(error: EmorlError) -> Rule:
    """The rule of the closest class in the error's MRO."""
    return next(_RULES[cls] for cls in type(error).__mro__ if cls in _RULES)


def status_for(error: EmorlError, path: str = "") -> int:
    """HTTP status. OpenAI clients expect 400 where the native routes say 422."""
    status = rule_for(error).status
    return 400 if status == 422 and path.startswith(OPENAI_PREFIX) else status


def error_object(error: EmorlError) -> dict[str, Any]:
    """The value of `"error"`, with all four keys, and two more for `NotDrafted`; also used in error events of
    streams."""
    rule = rule_for(error)
    message = error.message if rule.message is None else rule.message
    told = {"message": printable(message), "type": rule.type, "param": _printable(error.param), "code": error.code}
    if isinstance(error, NotDrafted):
        return told | {"reason": error.reason, "notice": printable(error.notice)}
    return told


def error_headers(error: EmorlError) -> dict[str, str]:
    rule = rule_for(error)
    headers: dict[str, str] = {}
    if rule.retry_after_s is not None:
        headers["Retry-After"] = str(getattr(error, "retry_after_s", rule.retry_after_s))
    if rule.repeats:
        headers["x-should-retry"] = "false"  # read by the OpenAI clients
    if rule.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def error_body(error: EmorlError) -> bytes:
    return json.dumps({"error": error_object(error)}, ensure_ascii=False, allow_nan=False).encode()


def error_response(error: EmorlError, path: str = "", headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        error_body(error),
        status_for(error, path),
        {**error_headers(error), **(headers or {})},
        media_type="application/json",
    )


def printable(text: str) -> str:
    """Replace lone surrogates, which JSON can encode and UTF-8 cannot, by `?`."""
    return text.encode("utf-8", "replace").decode()


def _printable(text: str | None) -> str | None:
    return None if text is None else printable(text)
