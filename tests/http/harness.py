"""A real server in a thread, and an in-process client, for the HTTP tests."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.responses import Response

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from server.app import create_app
from server.run import DrainingServer, make_server
from server.serving.scoring import MakeScoring
from server.serving.service import Service
from server.settings import Settings

PROMPT = "I feel tired of work and worried about family"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a client's default context loads CA certificates, 80 ms each


@dataclass(slots=True)
class Live:
    """A server that listens on a real socket."""

    url: str
    service: Service
    server: DrainingServer
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, verify=NO_TLS, **options)

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` on the server's event loop and wait for it."""
        done = threading.Event()

        def main() -> None:
            work()
            done.set()

        self.loop.call_soon_threadsafe(main)
        assert done.wait(60)

    @property
    def model(self) -> FakeModel:
        return model_of(self.service.deployment().ensemble)


def model_of(ensemble: Ensemble) -> FakeModel:
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    return model


class Proxy:
    """A reverse proxy with a path prefix, as an ASGI app: it strips the prefix or passes it on."""

    def __init__(self, app: Any, prefix: str, *, strips: bool) -> None:
        self._app = app
        self._prefix = prefix
        self._strips = strips
        self.state = app.state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path != self._prefix and not path.startswith(f"{self._prefix}/"):
                await Response("not behind this proxy", 404)(scope, receive, send)
                return
            if self._strips:
                scope = {**scope, "path": path[len(self._prefix) :]}
        await self._app(scope, receive, send)


@contextmanager
def live(
    settings: Settings | None = None,
    ensemble: Ensemble | None = None,
    *,
    ready: bool = True,
    behind: Callable[[Any], Any] = lambda app: app,
    scoring: MakeScoring | None = None,
) -> Iterator[Live]:
    """Serve on a free port; with `ready`, wait until requests are accepted. behind: app -> the app behind a proxy;
    scoring: for scorers that are not loaded here."""
    settings = settings or Settings(port=0)
    assert settings.port == 0, "tests must not fight over a port"
    given = fake_ensemble() if ensemble is None and settings.bundle is None else ensemble
    app = create_app(settings, given, scoring=scoring)
    server = make_server(behind(app), settings)
    loop = asyncio.new_event_loop()

    def main() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(server.serve())
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=main, name="test-server")
    thread.start()
    service: Service = app.state.service
    try:
        wait_until(lambda: server.started, "the server listens")
        if ready:
            wait_until(lambda: is_ready(service), "the server is ready")
        yield Live(server.url, service, server, thread, loop)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Poll, with a deadline that only a hang reaches, so that no test depends on the machine's speed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """`wait_until` for a test that itself runs on the event loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.005)


def is_ready(service: Service) -> bool:
    """Whether the service is ready; fails at once if it never will be."""
    assert service.failure is None, f"the bundle cannot be served: {service.failure!r}"
    return service.unready() is None


@asynccontextmanager
async def in_process(
    settings: Settings | None = None, ensemble: Ensemble | None = None, *, ready: bool = True
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of the app without a socket; bodies arrive whole."""
    app = create_app(settings or Settings(), ensemble or fake_ensemble())
    service: Service = app.state.service
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://emorl") as client:
            if ready:
                await until(lambda: is_ready(service), "the server is ready")
            yield client, service


def events(body: str) -> list[dict[str, Any]]:
    """The JSON of every event; checks that the stream ends correctly."""
    blocks = [block for block in body.split("\n\n") if block and not block.startswith(":")]
    assert body.endswith("\n\n"), "the last event must end with a blank line"
    assert blocks[-1] == "data: [DONE]"
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object of a response, after checking its form."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


def idle(live_server: Live) -> bool:
    """Whether nothing runs or waits, and every slot and permit is free."""
    service = live_server.service
    stats = service.deployment().worker.stats
    reading = service.reading()
    return (reading.running, reading.waiting, reading.permits, stats.slots_used, stats.waiting) == (
        0,
        0,
        0,
        0,
        0,
    ) and not service.active
