"""Exceptions of FastAPI, Starlette and pydantic as the common error body.

A pydantic error is reported in the client's terms: the field by its path in the body, and what is allowed. Names of
models and validators are not shown, and neither are strings that the client sent, since a prompt may be anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from emorl_core.config import reason_of
from emorl_core.errors import EmorlError, InvalidRequest
from server.door.errors import (
    BodyTooLarge,
    InternalError,
    InvalidJson,
    MethodNotAllowed,
    MissingField,
    ReadTimeout,
    RouteNotFound,
    UnknownField,
    UnsupportedMediaType,
    error_response,
)

Finding = Mapping[str, Any]  # of pydantic: its `type`, `loc`, `msg`, `input`, `ctx`

_MOST = 5  # errors reported per request
_OBJECTS = frozenset({"model_type", "model_attributes_type", "dict_type"})
_CLASSES: dict[str, type[InvalidRequest]] = {
    "extra_forbidden": UnknownField,
    "missing": MissingField,
    "json_invalid": InvalidJson,
}


def from_validation(findings: Sequence[Finding], body: Any = None) -> InvalidRequest:
    """Pydantic's errors in one line. `body`: the JSON that they are about."""
    first = findings[0]
    text = "; ".join(_line(each, body) for each in findings[:_MOST])
    return _CLASSES.get(str(first["type"]), InvalidRequest)(text, param=_field(first, body) or None)


def _field(finding: Finding, body: Any) -> str:
    """The path of an error in the body, `messages.0.content`."""
    if finding["type"] == "json_invalid":  # its location is an offset into the body
        return ""
    return ".".join(part[:40] if isinstance(part, str) else str(part) for part in _place(finding, body))


def _place(finding: Finding, body: Any) -> Iterator[str | int]:
    """The parts of a location that are in the body. Pydantic adds others: the union member that it tried, or a marker
    for a mapping's key."""
    root, *parts = finding["loc"]
    if root != "body":
        yield from parts
        return
    at = body
    for part in parts:
        if isinstance(at, dict) and (part in at or finding["type"] == "missing"):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            continue
        yield part


def _line(finding: Finding, body: Any) -> str:
    where, kind = _field(finding, body), finding["type"]
    context = finding.get("ctx", {})
    if kind == "json_invalid":
        return f"the body cannot be read as JSON: {context.get('error', 'it cannot be read')}"
    if kind == "extra_forbidden":
        return f"unknown field {where!r}"
    if kind == "missing":
        return f"{where}: missing, and required" if where else "the body is missing; send a JSON object"
    if kind == "not_implemented":
        return f"{where} is not implemented; leave it out"
    if kind in _OBJECTS:
        return f"{where}: must be an object" if where else "the body must be a JSON object"
    return f"{where}: {_words(finding)}{_shown(finding.get('input'))}" if where else _words(finding)


def _words(finding: Finding) -> str:
    context = finding.get("ctx", {})
    if finding["type"] == "list_type":
        return "must be a list"
    if finding["type"] == "too_long":
        return f"must have at most {context['max_length']} items, has {context['actual_length']}"
    if finding["type"] == "too_short" and context["min_length"] == 1:
        return "must not be empty"
    if finding["type"] == "too_short":
        return f"must have at least {context['min_length']} items, has {context['actual_length']}"
    message = reason_of(finding)
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    """The value, unless it could be text."""
    harmless = value is None or (isinstance(value, (bool, int, float)) and abs(value) < 1e300)
    return f" (found {value!r})" if harmless else ""


# --- handlers --------------------------------------------------------------------------------------------------------


def install_handlers(app: FastAPI) -> None:
    """Route every exception type that can reach Starlette's handlers to the common body."""

    # The path is from the scope: `request.url` is parsed from a string that begins with the Host header.
    async def on_emorl(request: Request, error: Exception) -> Response:
        assert isinstance(error, EmorlError)
        return error_response(error, request.scope["path"])

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found: EmorlError = from_validation(error.errors(), error.body)
        media_type = request.headers.get("content-type", "none").split(";")[0].strip().lower()
        if isinstance(error.body, bytes) and not media_type.endswith("json"):
            found = UnsupportedMediaType("Content-Type must be application/json", param="content-type")
        return error_response(found, request.scope["path"])

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if "Allow" in headers:
            headers["Allow"] = _with_head(headers["Allow"])
        return error_response(_from_http(error, headers), request.scope["path"], headers)

    app.add_exception_handler(EmorlError, on_emorl)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)


def _with_head(allow: str) -> str:
    methods = {method.strip() for method in allow.split(",")}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _from_http(error: HTTPException, headers: Mapping[str, str]) -> EmorlError:
    if error.status_code == 404:
        return RouteNotFound("no such route; GET /openapi.json lists them")
    if error.status_code == 405:
        return MethodNotAllowed(f"method not allowed here; allowed: {headers.get('Allow', 'other methods')}")
    if error.status_code == 408:
        return ReadTimeout(str(error.detail))
    if error.status_code == 413:
        return BodyTooLarge(str(error.detail))
    if error.status_code < 500:
        return InvalidJson("the body cannot be read as JSON")
    return InternalError("the server failed on this request")
