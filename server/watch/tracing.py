"""OpenTelemetry traces, off unless asked for by name: one span per generation request, with its phases below it.

FastAPI's own tracing is not used: its spans contain the path and the query as sent, and it keeps bodies for exporters.
These spans contain the configured route, numbers, and names from the bundle.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from emorl_core import __version__
from server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from server.serving.generation import Generation

_NS = 1_000_000_000
Attributes = Mapping[str, str | int | float]


class Tracing:
    """Records a request when it has ended, from times that are recorded anyway."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def record(self, scope: Scope, started: float, attributes: Attributes, generation: Generation | None) -> None:
        """started: `time.perf_counter()` at the request's beginning. A caller's `traceparent` is the parent."""
        from opentelemetry import trace

        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * _NS)

        span = self._tracer.start_span(
            f"{attributes['http.request.method']} {attributes['http.route']}",
            _parent(Headers(scope=scope)),
            trace.SpanKind.SERVER,
            attributes=dict(attributes),
            start_time=at(started),
        )
        if int(attributes["http.response.status_code"]) >= 500:
            span.set_status(trace.StatusCode.ERROR)
        if generation is not None:
            below = trace.set_span_in_context(span)
            for number, completion in enumerate(generation.completions.values()):
                begun = generation.began
                moments = (0.0, completion.queue_s, completion.first_token_s, completion.total_s)
                for phase, (begin, end) in zip(("queue", "prefill", "decode"), pairwise(moments), strict=True):
                    each = self._tracer.start_span(
                        phase, below, attributes={"emorl.choice": number}, start_time=at(begun + begin)
                    )
                    each.end(at(begun + end))
        span.end(now_ns)


def _parent(headers: Headers) -> Context:
    """The caller's span, by its ids only, since its state and baggage are the caller's data."""
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context

    known = trace.get_current_span(propagate.extract(dict(headers), Context())).get_span_context()
    numbers = trace.SpanContext(known.trace_id, known.span_id, is_remote=True, trace_flags=known.trace_flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(numbers), Context())


def check_tracing(settings: Settings) -> None:
    """Raises `SettingsError` when tracing is on and the packages of the `tracing` extra are missing."""
    if not settings.tracing:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401 - whether they can be imported is the question
    except ImportError:
        raise SettingsError("tracing is on and needs an extra: pip install 'emorl[tracing]'", param="tracing") from None


def set_up_tracing(settings: Settings) -> Tracing | None:
    """Tracing through OTLP, as the standard `OTEL_…` variables say; None when the setting is off.

    Raises:
        SettingsError: the packages of the `tracing` extra are missing.
    """
    if not settings.tracing:
        return None
    check_tracing(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A separate provider: the global one would enable libraries' own tracing.
    provider = TracerProvider(resource=Resource.create({"service.name": "emorl", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider.get_tracer("emorl", __version__))
