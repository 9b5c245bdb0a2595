"""Traces show where the time of a request went, and nothing of what was said."""

from __future__ import annotations

import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.settings import Settings
from server.watch.tracing import Tracing, set_up_tracing
from tests.http.harness import PROMPT, in_process


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("server.app.set_up_tracing", lambda settings: Tracing(provider.get_tracer("test")))
    return spans


async def test_a_request_is_one_span_with_its_phases_below_it(exporter: InMemorySpanExporter) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with in_process() as (client, _):
        answer = await client.post("/generate", json={"prompt": PROMPT}, headers={"traceparent": parent})
        await client.get("/info")
    *phases, span = exporter.get_finished_spans()
    assert (span.name, format(span.context.trace_id, "032x")) == ("POST /generate", parent.split("-")[1])
    attributes = dict(span.attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert attributes["emorl.tokens"] == answer.json()["usage"]["completion_tokens"]
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    for phase in phases:
        assert phase.parent is not None
        assert phase.parent.span_id == span.context.span_id
        assert phase.start_time is not None
        assert phase.end_time is not None
        assert phase.start_time <= phase.end_time
    assert [a.end_time for a in phases[:-1]] == [b.start_time for b in phases[1:]]


@pytest.mark.parametrize("parent", [{}, {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}])
async def test_what_a_caller_says_beside_its_span_is_not_exported(
    exporter: InMemorySpanExporter, parent: dict[str, str]
) -> None:
    words = {"tracestate": "ward=ZEBRAFISH,b@c=ZEBRAFISH", "baggage": "patient=ZEBRAFISH", "x-note": "ZEBRAFISH"}
    async with in_process() as (client, _):
        await client.post("/generate", json={"prompt": PROMPT}, headers={**parent, **words})
        await client.request("ZEBRAFISH", "/generate")
    spans = exporter.get_finished_spans()
    assert "ZEBRAFISH" not in json.dumps([json.loads(span.to_json()) for span in spans])
    assert all(not span.context.trace_state for span in spans)
    # A caller that does not sample says so in its `traceparent`, and that still holds.
    names = [span.name for span in spans if span.parent is None]
    assert names == (["_OTHER /generate"] if parent else ["POST /generate", "_OTHER /generate"])


async def test_no_words_reach_a_trace(exporter: InMemorySpanExporter) -> None:
    async with in_process() as (client, _):
        await client.post("/generate?q=ZEBRAFISH", json={"prompt": "ZEBRAFISH hurts", "stream": True})
        await client.post("/generate", json={"prompt": "x", "profile": "ZEBRAFISH"})
        await client.post("/ZEBRAFISH", json={})
    spans = exporter.get_finished_spans()
    assert len(spans) == 5
    assert "ZEBRAFISH" not in json.dumps([json.loads(span.to_json()) for span in spans])


def test_tracing_is_off_until_it_is_asked_for() -> None:
    assert set_up_tracing(Settings()) is None
