"""No word of a prompt or of a text in any log line, metric, trace or error, on any route, whatever goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import Checked
from server.settings import Settings, load_settings
from server.watch.log_queue import LogWriter
from server.watch.logs import logging_to
from server.watch.tracing import Tracing
from tests.http.harness import Live, idle, live, wait_until

MARKER = "ZEBRAFISH"
PROMPT = f"{MARKER} hurts and so does work"
CHAT = [{"role": "user", "content": PROMPT}]
JSON = {"content-type": "application/json"}
BOSS = {"Authorization": "Bearer boss"}
LINE = {"prompt": PROMPT, "from": {"reflection": 1.0}, "to": {"empathy": 1.0}, "max_new_tokens": 6}

# What each generation route takes, with the marker in it; a new route belongs here.
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": PROMPT, "receipt": True, "attribution": True, "score": True, "max_new_tokens": 20},
    "/sweep": {"prompts": [PROMPT, f"{MARKER} again"], "resolution": 3, "max_new_tokens": 20},
    "/sweep/line": LINE,
    "/sweep/map": {"prompt": PROMPT, "max_new_tokens": 6},
    "/drafts": {"prompt": PROMPT, "candidates": 5, "max_new_tokens": 20},
    "/v1/completions": {"model": "fake", "prompt": [PROMPT], "n": 2, "echo": True, "receipt": True},
    "/v1/chat/completions": {"model": "fake", "messages": CHAT, "receipt": True, "logprobs": True, "max_tokens": 20},
}
TEXTLESS = (
    "/choices",
    "/choices/next",
    "/profiles/learn",
)  # take no words; tests/http/test_choices.py has their answers
BAD: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": PROMPT, "max_new_tokens": 0}),
    ("/generate", {"prompt": f"{MARKER} " * 100}),
    ("/generate", {"prompt": "x", "temperature": MARKER}),
    ("/generate", {"prompt": "x", "combine": MARKER}),
    ("/generate", {"prompt": {"text": MARKER}}),
    ("/generate", {"prompt": "x", "stop": [[MARKER]]}),
    ("/generate", {"prompt": f"{MARKER} \ud800"}),
    ("/score", {"prompt": PROMPT, "texts": [[MARKER]]}),
    ("/choices", {"user": "x", "reason": MARKER, "shown": [{"weights": {"empathy": 1}, "text_sha256": MARKER}]}),
    ("/choices", {"user": MARKER * 20, "shown": [], "text": MARKER}),
    ("/choices/next", {"choices": [], "candidates": [{MARKER: 1}, [MARKER]]}),
    ("/choices/next", {"choices": [{"shown": [{"weights": {"empathy": 1}, "text_sha256": MARKER}]}]}),
    ("/profiles/learn", {"user": [MARKER]}),
    ("/sweep", {"prompts": [PROMPT]}),
    ("/sweep", {"prompts": [[MARKER]], "resolution": 2}),
    ("/sweep", {"prompts": [f"{MARKER} " * 100], "resolution": 2}),
    ("/sweep/line", {**LINE, "from": {"reflection": 0.0}}),
    ("/drafts", {"prompt": PROMPT, "count": MARKER}),
    ("/drafts", {"prompt": PROMPT, "temperature": 0, "seeds": 2}),
    ("/generate", {"prompt": PROMPT, "weights": MARKER}),
    ("/generate", {"prompt": PROMPT, "weights": "auto", "profile": MARKER}),
    ("/sweep/line", {**LINE, "prompt": f"{MARKER} " * 100}),
    ("/sweep/map", {"prompt": PROMPT, "corners": [{"reflection": 1.0}]}),
    ("/sweep/map", {"prompt": f"{MARKER} " * 100}),
    ("/v1/completions", {"model": MARKER, "prompt": "x"}),
    ("/v1/completions", {"model": "fake", "prompt": f"{MARKER} " * 100}),
    ("/v1/chat/completions", {"model": "fake", "messages": CHAT, "tools": [MARKER]}),
    ("/v1/chat/completions", {"model": "fake", "messages": [{"role": "system", "content": MARKER}, *CHAT]}),
    ("/v1/chat/completions", {"model": "fake", "messages": [{"role": "user", "content": [MARKER]}]}),
    ("/v1/chat/completions", {"model": "fake", "messages": [{"role": MARKER, "content": MARKER}]}),
]


class Seen:
    """Everything that left the server other than as an answer to who asked: kept to be searched at the end."""

    def __init__(self, log: io.StringIO, writer: LogWriter, spans: InMemorySpanExporter) -> None:
        self._log, self._writer, self.spans = log, writer, spans
        self.errors: list[str] = []
        self.metrics: list[str] = []
        self.texts: set[str] = set()  # what was generated: no place for it here either

    @property
    def log(self) -> str:
        """All lines so far."""
        assert self._writer.flush(60)
        return self._log.getvalue()

    def answered(self, response: httpx.Response) -> httpx.Response:
        if response.status_code >= 400:
            self.errors.append(response.text + str(dict(response.headers)))
        else:
            self.errors += [block for block in response.text.split("\n\n") if '"error"' in block]
            self.texts |= set(_texts(response))
        return response

    def check(self) -> None:
        traces = [span.to_json() for span in self.spans.get_finished_spans()]
        assert traces
        assert self.metrics
        for kind, everything in (
            ("error", self.errors), ("metric", self.metrics), ("trace", traces), ("log", self.log.splitlines()),
        ):  # fmt: skip
            for each in everything:
                assert MARKER not in each, kind
                for text in self.texts:
                    assert text not in each, kind


def _texts(response: httpx.Response) -> Iterator[str]:
    """Generated texts of an answer, streamed or not: whole ones, long enough not to be in anything by chance."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for name, each in value.items():
                if name in ("text", "content") and isinstance(each, str) and len(each) > 15:
                    yield each
                yield from walk(each)
        elif isinstance(value, list):
            for each in value:
                yield from walk(each)

    if response.headers["content-type"].startswith("text/event-stream"):
        for block in response.text.split("\n\n"):
            if block.startswith("data: {"):
                yield from walk(json.loads(block.removeprefix("data: ")))
    elif response.headers["content-type"] == "application/json":
        yield from walk(response.json())


@pytest.fixture
def seen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Every line of the most talkative level, traces in memory."""
    spans = InMemorySpanExporter()
    settings = Settings(log_format=getattr(request, "param", "json"), log_level="debug", log_lines_per_s=0)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("server.app.set_up_tracing", lambda settings: Tracing(provider.get_tracer("test")))
    log = io.StringIO()
    with logging_to(log.write, settings) as writer:
        yield Seen(log, writer, spans)


def _loud(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A scorer that fails with a person's words in its error."""
    raise RuntimeError(f"no score for {prompts} {completions}")


@contextmanager
def serving(seen: Seen, **settings: Any) -> Iterator[tuple[Live, httpx.Client]]:
    whole = {"response": [lambda response: response.read()]}
    ensemble = fake_ensemble(mean_length=15)
    ensemble.scorers = {"loud": Checked(_loud)}
    with live(load_settings(port=0, **settings), ensemble) as server, server.client(event_hooks=whole) as client:
        yield server, client
        wait_until(lambda: idle(server), "everything is free again")
        seen.metrics.append(client.get("/metrics").text)
        seen.metrics.append(client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text)


@pytest.mark.parametrize("seen", ["console", "json"], indirect=True)
def test_every_route_answers_well_and_tells_nobody_else(seen: Seen, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(seen, admin_keys="boss") as (server, client):
        documented = client.get("/openapi.json").json()["paths"]
        assert {path for path, each in documented.items() if "post" in each} == {
            *BODIES,
            *TEXTLESS,
            "/score",
            "/admin/reload",
        }
        for path, body in BODIES.items():
            for stream in (False, True):
                response = seen.answered(client.post(f"{path}?q={MARKER}", json={**body, "stream": stream}))
                assert response.status_code == 200, (path, response.text)
                assert "data: [DONE]" in response.text or not stream
        response = client.post(f"/score?q={MARKER}", json={"prompt": PROMPT, "texts": [MARKER, "x"]})
        assert [each["unscored"] for each in response.json()["results"]] == [{"loud": "failed"}] * 2
        for path, methods in documented.items():
            if "get" in methods:
                seen.answered(client.get(path.replace("{model}", MARKER), params={"q": MARKER}))
        seen.answered(client.post("/admin/reload", headers=BOSS, content=MARKER))  # refused: it was given its model
        assert server.service.deployment().worker.restarts == 0
    assert len(seen.texts) > 10
    seen.check()
    assert '"route": "/sweep/line"' in seen.log or "route=/sweep/line" in seen.log
    printed = capfd.readouterr()
    assert MARKER not in printed.out + printed.err


def test_what_is_refused_at_the_door_is_not_repeated(seen: Seen) -> None:
    with serving(seen) as (_, client):
        for path, body in BAD:
            content = json.dumps(body).encode()
            assert seen.answered(client.post(path, content=content, headers=JSON)).status_code >= 400, body
        for path in (*BODIES, f"/{MARKER}", f"/v1/models/{MARKER}"):
            for content in (f'{{"prompt": "{MARKER}'.encode(), MARKER.encode(), b'"' + MARKER.encode() + b'"'):
                seen.answered(client.post(path, content=content, headers=JSON))
                seen.answered(client.put(path, content=content, headers={"content-type": f"text/{MARKER}"}))
            seen.answered(client.post(path, json={}, headers={"tracestate": f"a={MARKER}", "baggage": f"a={MARKER}"}))
        seen.answered(client.get("/livez", headers={"X-Long": MARKER * 4000}))
    assert len(seen.errors) >= len(BAD) + 30
    seen.check()


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def faults(ensemble: Ensemble) -> dict[str, tuple[Any, str, Any]]:
    """Name -> what is replaced, by what, for one request each."""
    model, engine = ensemble.engine.model, ensemble.engine
    words = f"in the engine: {PROMPT}"
    return {
        "prefill": (model, "on_prefill", _raise(ValueError(words))),
        "step": (model, "on_step", _raise(RuntimeError(words))),
        "memory": (model, "on_step", _raise(torch.OutOfMemoryError(words))),
        "sampling": (engine.runner.batches[False], "_choose", _raise(RuntimeError(words))),
        "thread": (engine, "step", _raise(RuntimeError(words))),
        "adding": (engine, "add_group", _raise(KeyError(words))),
        "tokenising": (ensemble.tokenizer, "encode", _raise(KeyError(words))),
        "not finite": (model, "head", lambda hidden: torch.full((len(hidden), model.facts.vocab_size), float("nan"))),
    }


@pytest.mark.parametrize("seen", ["console", "json"], indirect=True)
def test_what_fails_inside_is_told_without_its_words(seen: Seen, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(seen) as (server, client):
        ensemble = server.service.deployment().ensemble
        for name, (owner, attribute, broken) in faults(ensemble).items():
            for path in ("/generate", "/sweep", "/v1/completions", "/v1/chat/completions"):
                sound = getattr(owner, attribute)
                setattr(owner, attribute, broken)
                try:
                    body = {**BODIES[path], "stream": path in ("/sweep", "/v1/completions")}
                    response = seen.answered(client.post(path, json=body))
                    assert response.status_code >= 500, (name, path)
                finally:
                    setattr(owner, attribute, sound)
                wait_until(lambda: server.service.unready() is None, "it is ready again")
        _break_in_mid_stream(server, client, seen)
    assert len(seen.errors) > 32
    assert "failed" in seen.log, "the log was really read"
    seen.check()
    printed = capfd.readouterr()
    assert MARKER not in printed.out + printed.err


def _break_in_mid_stream(server: Live, client: httpx.Client, seen: Seen) -> None:
    engine = server.service.deployment().ensemble.engine
    step, calls = engine.step, iter(range(1000))

    def failing() -> Any:
        if next(calls) == 4:
            raise RuntimeError(f"in mid-stream: {PROMPT}")
        return step()

    engine.step = failing  # type: ignore[method-assign]
    response = seen.answered(client.post("/generate", json={"prompt": PROMPT, "stream": True, "min_new_tokens": 20}))
    engine.step = step  # type: ignore[method-assign]
    assert (response.status_code, '"code":"engine_restarted"' in response.text) == (200, True)
    wait_until(lambda: server.service.unready() is None, "it is ready again")


def test_who_leaves_waits_too_long_or_is_sent_away_leaves_no_words(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([fake_ensemble(slots=1, step_delay_s=0.005), fake_ensemble()])

    def load(settings: Settings, group: None) -> Ensemble:
        ensemble = next(loads, None)
        if ensemble is None:
            raise RuntimeError(f"a bundle that tells {MARKER}")
        return ensemble

    monkeypatch.setattr("server.serving.service.load", load)
    settings: dict[str, Any] = {"bundle": "any", "max_queue": 1, "queue_timeout_s": 1.0, "admin_keys": "boss"}
    with live(load_settings(port=0, **settings)) as server, server.client() as client:
        long = {"prompt": PROMPT, "stream": True, "min_new_tokens": 900, "max_new_tokens": 900}
        with client.stream("POST", "/generate", json=long) as running:
            lines = running.iter_lines()  # kept: a reader that is let go closes the connection
            next(lines)
            waiting = threading.Thread(target=lambda: seen.answered(client.post("/generate", json={"prompt": PROMPT})))
            waiting.start()
            wait_until(lambda: server.service.admission.in_use == 2, "one waits")
            for path in ("/v1/completions", "/generate"):  # 429, or 503 where the machine is slow
                assert seen.answered(client.post(path, json=BODIES[path])).status_code in (429, 503)
            waiting.join(60)
            assert any('"queue_timeout"' in error for error in seen.errors)
        wait_until(lambda: idle(server), "the one who left is gone")
        assert client.post("/admin/reload", headers=BOSS).status_code == 200
        assert seen.answered(client.post("/admin/reload", headers=BOSS)).status_code == 409
        server.call(server.service.drain)
        assert seen.answered(client.post("/generate", json={"prompt": PROMPT})).status_code == 503
        seen.metrics.append(client.get("/metrics").text)
        asyncio.run_coroutine_threadsafe(server.service.drained(1), server.loop).result(60)
    seen.check()
