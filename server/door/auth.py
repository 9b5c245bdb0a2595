"""API keys: compared by digest in constant time, required on every route that is not listed as open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from emorl_core.errors import EmorlError, InvalidRequest
from emorl_core.files.reading import Missing, Unreadable
from emorl_core.files.text_files import read_lines
from server.door.context import context_of
from server.door.errors import Forbidden, Unauthorized, error_response
from server.settings import Settings, SettingsError

# Everything else requires a key, so that a new route or another spelling of a path is closed by default.
OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/startupz"})
METRICS_PATH = "/metrics"
ADMIN_PREFIX = "/admin/"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Names and SHA-256 digests; the keys themselves are not kept."""

    digests: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, keys: Iterable[tuple[str, str]]) -> KeyRing:
        return cls(tuple((name, hashlib.sha256(key.encode()).digest()) for name, key in keys))

    def find(self, presented: bytes) -> str | None:
        """The name of a key, or None. Every digest is compared, so that timing does not reveal which one matches."""
        digest = hashlib.sha256(presented).digest()
        found: str | None = None
        for name, known in self.digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def __bool__(self) -> bool:
        return bool(self.digests)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one server: `api` for its users, `admin` for `/admin/…`."""

    api: KeyRing
    admin: KeyRing

    @classmethod
    def read(cls, settings: Settings) -> Keys:
        """Raises `SettingsError` when the file cannot be read or a key is given twice."""
        named = [(f"key-{i}", key.get_secret_value()) for i, key in enumerate(settings.api_keys, 1)]
        if settings.api_keys_file is not None:
            from_file = _read_file(settings.api_keys_file)
            if not from_file:
                # An empty file would leave the server open, so it is refused.
                raise SettingsError(f"api_keys_file is {str(settings.api_keys_file)!r}; there is no key in it")
            named += from_file
        admin = [(f"admin-{i}", key.get_secret_value()) for i, key in enumerate(settings.admin_keys, 1)]
        if len({key for _, key in named + admin}) < len(named + admin):
            raise SettingsError("api_keys, api_keys_file, admin_keys: one key is listed twice", param="api_keys")
        return cls(KeyRing.of(named), KeyRing.of(admin))


def _read_file(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_lines(path)
    except Missing:
        raise SettingsError(f"api_keys_file is {str(path)!r}; there is no such file") from None
    except Unreadable as error:
        raise SettingsError(f"api_keys_file is {str(path)!r}; it {error.reason}") from None
    named = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            name, colon, key = text.partition(":")
            named.append((name.strip(), key.strip()) if colon else (f"line-{number}", text))
    if any(not name or not key for name, key in named):
        raise SettingsError(f"api_keys_file is {str(path)!r}; allowed: lines of the form key or name:key")
    return named


class AuthMiddleware:
    """401 without a key, 403 with the wrong kind. With no API key configured, everything but /admin is open."""

    def __init__(
        self, app: ASGIApp, keys: Keys, metrics_key_required: bool, open_paths: frozenset[str] = frozenset()
    ) -> None:
        """open_paths: exact paths that need no key, besides the probes."""
        self.app = app
        self._keys = keys
        self._open = OPEN_PATHS | open_paths | (frozenset() if metrics_key_required else {METRICS_PATH})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> EmorlError | None:
        path = scope["path"]
        admin = path.startswith(ADMIN_PREFIX)
        if path in self._open or not (admin or self._keys.api):
            return None
        if admin and not self._keys.admin:
            return Forbidden("admin routes are off; set admin_keys to use them")
        scheme, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            return Unauthorized("missing API key; send it as Authorization: Bearer KEY")
        key = presented.strip().encode("latin-1")  # headers are bytes; this reverses their decoding
        context = context_of(scope)
        if admin:
            context.key = self._keys.admin.find(key)
            if context.key is None and self._keys.api.find(key) is not None:
                return Forbidden("this key is no admin key")
        else:
            context.key = self._keys.api.find(key)
        return Unauthorized("invalid API key") if context.key is None else None


class Cors(CORSMiddleware):
    """Starlette's middleware, with the common error body for refused preflights."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            # All headers are allowed from listed origins: OpenAI's client sends a dozen of its own, tracing adds
            # others.
            allow_headers=("*",),
            expose_headers=("X-Request-ID", "Retry-After", "X-Should-Retry"),
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refused = InvalidRequest("this origin or method is not allowed from a browser (cors_origins)")
        refusal = error_response(refused)
        refusal.status_code = response.status_code
        refusal.headers["Vary"] = "Origin"
        return refusal
