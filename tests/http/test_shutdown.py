"""SIGTERM and SIGINT on a real process: accepted work is finished, the rest is told, the process ends cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from uvicorn.lifespan.on import LifespanOn

from emorl_core.errors import BundleError
from emorl_core.fake import fake_ensemble
from server.door.listener import Listener
from server.run import run
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, events, live, wait_until
from tests.http.test_limits import connect, everything

ROOT = Path(__file__).parents[2]


@contextmanager
def process(
    step_delay_s: float = 0.01,
    mean_length: int = 60,
    *,
    before: Callable[[], None] | None = None,
    **settings: object,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`before` runs in the child before anything of its own."""
    given = [f"{name}={value}" for name, value in {"drain_timeout_s": 20, **settings}.items()]
    command = [sys.executable, "-m", "tests.http.serve_fake", str(step_delay_s), str(mean_length), *given]
    # One thread: several of these run at once and torch would start one per core in each.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, preexec_fn=before, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            url = child.stdout.readline().strip()
            assert url.startswith("http://"), child.stderr.read() if child.stderr else ""
            yield child, url
        finally:
            if child.poll() is None:
                child.kill()


@pytest.mark.slow
def test_sigterm_lets_accepted_streams_finish() -> None:
    with process() as (child, url), httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(6) as pool:
        body = {"prompt": PROMPT, "stream": True, "min_new_tokens": 40}  # six of them: two wait for a slot
        streams = [pool.submit(client.post, "/generate", json={**body, "seed": i}) for i in range(6)]
        wait_until(lambda: "emorl_requests_admitted 6.0" in httpx.get(f"{url}/metrics").text, "all are accepted")
        child.send_signal(signal.SIGTERM)
        for stream in streams:
            *_, done = events(stream.result().text)
            assert done["type"] == "done"
            assert done["usage"]["completion_tokens"] >= 40
        assert child.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")


@pytest.mark.slow
def test_a_second_sigint_does_not_wait() -> None:
    body = {"prompt": PROMPT, "stream": True, "max_new_tokens": 1000}
    with (
        process(mean_length=5000) as (child, url),
        httpx.Client(base_url=url, timeout=60) as client,
        client.stream("POST", "/generate", json=body) as response,
    ):
        lines = response.iter_lines()  # kept: a collected iterator closes the response
        next(lines)
        child.send_signal(signal.SIGINT)
        wait_until(lambda: _refuses(url), "it has begun to drain")
        child.send_signal(signal.SIGINT)
        child.wait(60)
        received: list[str] = []
        with suppress(httpx.TransportError):
            received.extend(lines)
    assert not any('"type":"done"' in line for line in received), "it waited for the end of the answer"


def _refuses(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 503
    except httpx.TransportError:
        return True


def test_what_outlives_the_deadline_ends_with_an_error_event() -> None:
    body = {"prompt": PROMPT, "stream": True, "max_new_tokens": 1000}
    ensemble = fake_ensemble(step_delay_s=0.01, mean_length=5000)
    with (
        live(Settings(port=0, drain_timeout_s=0.2), ensemble) as server,
        server.client() as client,
        client.stream("POST", "/generate", json=body) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith('data: {"type":"token"')
        server.call(server.server.begin_drain)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"code":"shutting_down"' in rest[-2]
        server.thread.join(60)
        assert not server.thread.is_alive()


def test_while_draining_readiness_is_gone_and_new_requests_are_refused() -> None:
    with (
        live(Settings(port=0, drain_delay_s=2.0), fake_ensemble(step_delay_s=0.005)) as server,
        server.client() as client,
    ):
        running: list[httpx.Response] = []

        def ask() -> None:
            with server.client() as other:
                running.append(other.post("/generate", json={"prompt": PROMPT, "min_new_tokens": 60, "stream": True}))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: server.service.reading().running == 1, "it runs")
        server.call(server.server.begin_drain)
        ready, refused = client.get("/readyz"), client.post("/generate", json={"prompt": PROMPT})
        for response in (ready, refused):
            assert (response.status_code, error_of(response)["code"]) == (503, "shutting_down")
        assert client.get("/livez").status_code == 200, "a draining process must not be killed for it"
        thread.join(60)
        assert events(running[0].text)[-1]["type"] == "done"
        server.thread.join(60)
        assert not server.thread.is_alive()


def test_who_connected_before_the_end_is_answered_though_nobody_has_taken_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel resets whoever is left in its backlog."""

    async def never(self: Listener, sock: socket.socket) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Listener, "_take", never)
    with live(Settings(port=0)) as server, ExitStack() as held:
        waiting = [held.enter_context(connect(server)) for _ in range(3)]
        for connection in waiting:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        server.call(server.server.begin_drain)
        for connection in waiting:
            assert b" 503 " in (answer := everything(connection))
            assert b'"shutting_down"' in answer


def test_the_url_is_told_when_the_socket_listens_though_the_bundle_was_ready_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, reached = LifespanOn.startup, list[str]()

    async def begin_and_wait(self: LifespanOn) -> None:
        await begin(self)
        while not self.config.app.state.service.started:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)

    def on_ready(url: str) -> None:
        try:
            socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=60).close()
            reached.append(url)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LifespanOn, "startup", begin_and_wait)
    run(Settings(port=0), fake_ensemble(), on_ready=on_ready)
    assert len(reached) == 1


def test_run_raises_what_was_wrong_with_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.yaml"):
        run(Settings(port=0, bundle=str(tmp_path)))
