"""Prometheus metrics of one service, in a registry of its own.

Label values come from configuration only: routes from the route table, objectives from the bundle. No text of a request
ever becomes a label or a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from emorl_core.policy import FAILED, REASONS
from emorl_core.types import Attribution, Completion
from emorl_core.weights import BASE, MAX_WEIGHT
from server.door.connections import REASONS as CUT_REASONS
from server.watch.log_queue import REASONS as DROP_REASONS

UNSCORED = ("failed", "timeout", "busy", "code", "too_long")
OUTCOMES = ("stop", "length", "cancelled", "rejected", "not_drafted", "error")

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class EngineReading:
    """The gauges' values at a scrape."""

    running: int = 0
    waiting: int = 0
    lanes_running: int = 0
    slots: int = 0
    slots_used: int = 0
    kv_cache_bytes: int = 0
    kv_cache_limit: int | None = None
    compiled: bool = False
    prefill_hits: int = 0
    prefill_misses: int = 0
    prefill_tokens_found: int = 0
    prefill_tokens_computed: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    restarts: int = 0
    faults: int = 0
    permits: int = 0
    connections: int = 0
    connections_cut: Mapping[str, int] = field(default_factory=dict)  # by reason
    log_lines_dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    info: Mapping[str, str] | None = None  # version, bundle, device, dtype

    @property
    def cache_use(self) -> float:
        """Share of the cache in use, 0 to 1; 0 while nothing is loaded."""
        if self.kv_cache_limit is not None:
            return self.kv_cache_bytes / self.kv_cache_limit
        return self.slots_used / self.slots if self.slots else 0.0


class _EngineCollector(Collector):
    """Reads the engine when scraped, so that no code path can forget to update a gauge."""

    def __init__(self, read: Callable[[], EngineReading]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        now = self._read()
        yield _gauge("emorl_requests_running", "Requests in the batch.", now.running)
        yield _gauge("emorl_requests_waiting", "Requests accepted and waiting for a slot.", now.waiting)
        yield _gauge("emorl_requests_admitted", "Permits in use: running and waiting rows.", now.permits)
        yield _gauge("emorl_lanes_running", "Distinct lanes in the last step.", now.lanes_running)
        yield _gauge("emorl_kv_slots", "Sequences that can run at once.", now.slots)
        yield _gauge("emorl_kv_slots_used", "Sequences that run.", now.slots_used)
        held = "Bytes held for keys and values of running sequences, unused capacity included."
        yield _gauge("emorl_kv_cache_used_bytes", held, now.kv_cache_bytes)
        text = "Upper bound of emorl_kv_cache_used_bytes, if kv_cache_bytes is set."
        limit = GaugeMetricFamily("emorl_kv_cache_limit_bytes", text)
        if now.kv_cache_limit is not None:
            limit.add_metric([], now.kv_cache_limit)
        yield limit
        # Under the names that autoscalers and endpoint pickers for Kubernetes read by default.
        yield _gauge("vllm:num_requests_running", "emorl_requests_running, by vLLM's name.", now.running)
        yield _gauge("vllm:num_requests_waiting", "emorl_requests_waiting, by vLLM's name.", now.waiting)
        text = "Share of the capacity in use, by vLLM's name: of kv_cache_bytes if set, else of slots."
        yield _gauge("vllm:kv_cache_usage_perc", text, now.cache_use)
        yield _gauge("emorl_step_compiled", "1 if new requests use the compiled step, else 0.", now.compiled)
        yield _counter("emorl_prefill_cache_hits", "Prompts found whole in the cache, per lane.", now.prefill_hits)
        yield _counter("emorl_prefill_cache_misses", "Prompts computed at least in part, per lane.", now.prefill_misses)
        found = "Prompt tokens found in the prefill cache, per lane."
        yield _counter("emorl_prefill_tokens_found", found, now.prefill_tokens_found)
        computed = "Prompt tokens computed, per lane, without the last one of a decoder's prompt."
        yield _counter("emorl_prefill_tokens_computed", computed, now.prefill_tokens_computed)
        proposed = "Tokens copied from prompts and replies, to be verified (prompt_lookup)."
        yield _counter("emorl_lookup_tokens_proposed", proposed, now.proposed_tokens)
        accepted = "Proposed tokens that were right; each saved its request a step."
        yield _counter("emorl_lookup_tokens_accepted", accepted, now.accepted_tokens)
        yield _counter("emorl_engine_restarts", "Restarts of the engine's thread.", now.restarts)
        text = "Steps that failed and were retried request by request; costs time, and the faulty request its answer."
        yield _counter("emorl_engine_faults", text, now.faults)
        yield _gauge("emorl_connections", "Open connections.", now.connections)
        cut = "Connections closed by the server, by what it waited for too long; full: to make room."
        yield _by_reason("emorl_connections_cut", cut, CUT_REASONS, now.connections_cut)
        dropped = "Log lines dropped: too many of one kind (rate), slow reader (queue), none (write), faults (format)."
        yield _by_reason("emorl_log_lines_dropped", dropped, DROP_REASONS, now.log_lines_dropped)
        if now.info is not None:
            info = GaugeMetricFamily("emorl_info", "What is served; always 1.", labels=list(now.info))
            info.add_metric(list(now.info.values()), 1)
            yield info


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _by_reason(name: str, text: str, reasons: Sequence[str], counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason in reasons:
        family.add_metric([reason], counts.get(reason, 0))
    return family


class Metrics:
    """All metrics of one service. `read` returns the engine's numbers at every scrape."""

    def __init__(self, read: Callable[[], EngineReading], routes: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(read))
        registry = self.registry
        self.requests = Counter(
            "emorl_requests",
            "Generation requests by route and how they ended.",
            ["route", "outcome"],
            registry=registry,
        )
        for route in routes:  # create all series at startup, so that rates include the first event
            for outcome in OUTCOMES:
                self.requests.labels(route, outcome)
        self.not_drafted = Counter(
            "emorl_not_drafted",
            "Requests that the policy had no draft written for; policy_failed: it did not answer.",
            ["reason"],
            registry=registry,
        )
        for reason in (*REASONS, FAILED):
            self.not_drafted.labels(reason)
        self.prompt_tokens = Counter("emorl_prompt_tokens", "Tokens of accepted prompts.", registry=registry)
        self.generated_tokens = Counter("emorl_generated_tokens", "Tokens generated.", registry=registry)
        self.first_token = Histogram(
            "emorl_time_to_first_token_seconds", "Accepted to first token.", buckets=_FIRST_TOKEN_S, registry=registry
        )
        self.inter_token = Histogram(
            "emorl_inter_token_seconds",
            "Time between tokens as a streaming client sees it; for a plain answer its mean, once.",
            buckets=_INTER_TOKEN_S,
            registry=registry,
        )
        self.queue = Histogram("emorl_queue_seconds", "Accepted to a slot.", buckets=_REQUEST_S, registry=registry)
        self.request = Histogram("emorl_request_seconds", "Accepted to the end.", buckets=_REQUEST_S, registry=registry)
        self.batch_rows = Histogram(
            "emorl_batch_rows", "Requests in the batch, one observation per step.", buckets=_ROWS, registry=registry
        )
        self.weight_sum = Counter(
            "emorl_objective_weight_sum",
            "Sum of the resolved weights of completed requests.",
            ["objective"],
            registry=registry,
        )
        self.objective_requests = Counter(
            "emorl_objective_requests",
            "Completed requests that gave the objective weight.",
            ["objective"],
            registry=registry,
        )
        self.attribution = Histogram(
            "emorl_objective_attribution",
            "Share of the positive attribution of a token that won, if attribution was requested; 0: spoke against it.",
            ["objective"],
            buckets=_SHARES,
            registry=registry,
        )

        self.score_seconds = Histogram(
            "emorl_score_seconds",
            "Time of one call of an objective's scorer, for up to 32 texts.",
            ["objective"],
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self.scored_texts = Counter(
            "emorl_scored_texts", "Texts scored by an objective's scorer.", ["objective"], registry=registry
        )
        self.unscored_texts = Counter(
            "emorl_unscored_texts",
            "Texts left without an objective's score: its scorer failed, was late (timeout), may not run (code), or the"
            " queue was full (busy) or the text too long.",
            ["objective", "reason"],
            registry=registry,
        )

    def know_scorers(self, names: Iterable[str]) -> None:
        """Create the series of a bundle's scorers at zero."""
        for name in names:
            self.score_seconds.labels(name)
            self.scored_texts.labels(name)
            for reason in UNSCORED:
                self.unscored_texts.labels(name, reason)

    def scored(self, name: str, unscored: str | None) -> None:
        """Count one text of a scorer. unscored: why it has no score."""
        if unscored is None:
            self.scored_texts.labels(name).inc()
        else:
            self.unscored_texts.labels(name, unscored).inc()

    def know_objectives(self, objectives: Sequence[str]) -> None:
        """Create the series of a bundle's objectives at zero."""
        for objective in (BASE, *objectives):
            self.weight_sum.labels(objective)
            self.objective_requests.labels(objective)
            self.attribution.labels(objective)

    def completed(self, completion: Completion, lanes: Sequence[str], *, streamed: bool) -> None:
        """Count one finished completion. `streamed`: its gaps between tokens were observed one by one."""
        tokens = completion.completion_tokens
        self.prompt_tokens.inc(completion.prompt_tokens)
        self.generated_tokens.inc(tokens)
        self.queue.observe(completion.queue_s)
        self.request.observe(completion.total_s)
        if tokens:
            self.first_token.observe(completion.first_token_s)
        if tokens > 1 and not streamed:
            self.inter_token.observe((completion.total_s - completion.first_token_s) / (tokens - 1))
        for objective, weight in completion.weights.items():
            # A counter cannot decrease, and inf would be permanent: negative weights (normalize: false) count by
            # magnitude, and magnitudes that no request may have are skipped.
            if 0.0 < abs(weight) <= MAX_WEIGHT:
                self.objective_requests.labels(objective).inc()
                self.weight_sum.labels(objective).inc(abs(weight))
        for attribution in completion.attributions:
            self._attributed(attribution, lanes)

    def abandoned(self, completion: Completion) -> None:
        """Count the work for a completion whose client had left."""
        self.prompt_tokens.inc(completion.prompt_tokens)
        self.generated_tokens.inc(completion.completion_tokens)

    def _attributed(self, attribution: Attribution, lanes: Sequence[str]) -> None:
        # Parts can be negative and Prometheus sums must not fall: of the parts that spoke for the token, each one's
        # share. The shares of a token sum to 1.
        shares = attribution.shares
        if shares is None or not attribution.margin > 0.0:
            return  # the token was sampled although another was more likely, so shares are meaningless
        for lane, part, share in zip(lanes, attribution.parts, shares, strict=True):
            if lane != BASE or part != 0.0:
                self.attribution.labels(lane).observe(share)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, as the scraper's `Accept` header prefers."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version in the header that is no version
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type
