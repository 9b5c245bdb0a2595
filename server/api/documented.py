"""Errors in the OpenAPI document: one example for every status that a route can answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

_EXAMPLES: dict[int, tuple[str, str, str, str | None, str]] = {
    # status: (description, message, type, param, code)
    400: ("Not JSON.", "the body cannot be read as JSON: …", "invalid_request_error", None, "invalid_json"),
    401: ("No valid API key.", "missing API key", "authentication_error", None, "invalid_api_key"),
    403: ("This key may not do this.", "this key is no admin key", "permission_error", None, "forbidden"),
    404: ("No such thing.", "no such model", "invalid_request_error", "model", "model_not_found"),
    408: ("The body did not come in time.", "the body did not come within 30 seconds (read_timeout_s)",
          "invalid_request_error", None, "read_timeout"),
    409: ("The new bundle was refused.", "bundle.yaml: unknown key 'profil'", "reload_error", None, "reload_failed"),
    413: ("The body is too large.", "the body is too large; allowed: 262144 bytes (max_body_bytes)",
          "invalid_request_error", None, "body_too_large"),
    415: ("Not JSON by its Content-Type.", "Content-Type must be application/json", "invalid_request_error",
          "content-type", "unsupported_media_type"),
    421: ("Another host than those of allowed_hosts.", "the Host header names no host of this server; see its"
          " allowed_hosts", "invalid_request_error", "host", "host_not_allowed"),
    422: ("Names what is wrong.", "weights: unknown objective 'empaty'; objectives: base, reflection, empathy",
          "invalid_request_error", "weights.empaty", "invalid_weights"),
    429: ("The queue is full; see Retry-After.", "all 16 slots and 64 places in the queue are taken; try again later",
          "rate_limit_error", None, "queue_full"),
    431: ("The headers are too large.", "the headers are too large; allowed: 16384 bytes (max_header_bytes)",
          "invalid_request_error", None, "headers_too_large"),
    500: ("The engine failed on this request.", "the model produced numbers that are not finite for this request;"
          " other weights may work", "server_error", None, "non_finite"),
    503: ("Loading, restarting or shutting down; see Retry-After.", "the bundle is still being loaded",
          "service_unavailable_error", None, "not_ready"),
}  # fmt: skip


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None
    reason: str | None = Field(None, description="Only with the code not_drafted: the policy's reason.")
    notice: str | None = Field(None, description="Only with the code not_drafted: the operator's own text.")


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


GENERATION_ERRORS = (400, 401, 408, 413, 415, 421, 422, 429, 431, 500, 503)


def streamed(example: str) -> dict[str, Any]:
    """The response of a route that can answer with server-sent events."""
    return {"content": {"text/event-stream": {"example": example}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        description, message, kind, param, code = _EXAMPLES[status]
        example = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        documented[status] = {
            "model": ErrorBody,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
    return documented
