"""The metrics tell the truth, under names and labels that were settled before."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from emorl_core.fake import fake_ensemble
from emorl_core.types import MAX_SEED, Sampling
from server.api.generate_models import GenerateRequest
from server.watch.metrics import EngineReading, Metrics
from tests.http.harness import PROMPT, Live, events, idle, live, wait_until


def samples(server: Live) -> dict[tuple[str, tuple[str, ...]], float]:
    with server.client() as client:
        text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_finished_requests_are_counted_by_route_and_outcome() -> None:
    with live() as server, server.client() as client:
        stop = client.post("/generate", json={"prompt": PROMPT}).json()
        length = events(client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 3, "stream": True}).text)[-1]
        client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 0})
        client.post("/generate/", json={"prompt": PROMPT})
        now = samples(server)
        requests = {
            outcome: now["emorl_requests_total", tuple(sorted(("/generate", outcome)))]
            for outcome in ("stop", "length", "cancelled", "rejected", "error")
        }
        assert requests == {"stop": 1, "length": 1, "cancelled": 0, "rejected": 1, "error": 0}
        for name, part in (
            ("emorl_prompt_tokens_total", "prompt_tokens"),
            ("emorl_generated_tokens_total", "completion_tokens"),
        ):
            assert now[name, ()] == stop["usage"][part] + length["usage"][part]
        for name in ("time_to_first_token", "queue", "request"):
            assert now[f"emorl_{name}_seconds_count", ()] == 2
        assert now["emorl_inter_token_seconds_count", ()] == 1 + 2, "a mean for the plain answer, every gap of a stream"
        assert now["emorl_requests_running", ()] == now["emorl_requests_waiting", ()] == 0
        assert now["emorl_kv_slots", ()] == 8
        assert now["emorl_kv_slots_used", ()] == 0
        assert ("emorl_kv_cache_limit_bytes", ()) not in now
        assert now["emorl_batch_rows_count", ()] >= stop["usage"]["completion_tokens"]
        assert now["emorl_prefill_cache_hits_total", ()] == 3, "the second request had the first one's prompt"


def test_memory_of_keys_and_values_and_its_bound_are_gauges() -> None:
    ensemble = fake_ensemble(kv_cache_bytes=200_000)
    with live(ensemble=ensemble) as server, server.client() as client:
        assert client.post("/generate", json={"prompt": PROMPT}).status_code == 200
        wait_until(lambda: idle(server), "the engine rests")
        now = samples(server)
        assert now["emorl_kv_cache_limit_bytes", ()] == 200_000
        assert 0 < now["emorl_kv_cache_used_bytes", ()] <= 200_000
        assert now["emorl_kv_cache_used_bytes", ()] == ensemble.engine.stats.kv_cache_bytes


def test_weights_are_counted_per_objective() -> None:
    with live() as server, server.client() as client:
        client.post("/generate", json={"prompt": PROMPT, "weights": {"reflection": 3, "empathy": 1}})
        client.post("/generate", json={"prompt": PROMPT, "weights": {"empathy": -0.5, "base": 1}, "normalize": False})
        now = samples(server)
        sums = {
            name: now["emorl_objective_weight_sum_total", (name,)]
            for name in ("base", "reflection", "empathy", "fluency")
        }
        assert sums == pytest.approx({"base": 1.0, "reflection": 0.75, "empathy": 0.75, "fluency": 0.0})
        counts = {name: now["emorl_objective_requests_total", (name,)] for name in sums}
        assert counts == {"base": 1, "reflection": 1, "empathy": 2, "fluency": 0}


def test_attribution_shares_sum_to_one_per_token() -> None:
    with live() as server, server.client() as client:
        answer = client.post("/generate", json={"prompt": PROMPT, "attribution": True}).json()
        won = [token for token in answer["tokens"] if sum(token["attribution"].values()) > 0]
        now = samples(server)
        names = ("reflection", "empathy", "fluency")
        assert won
        assert all(now["emorl_objective_attribution_count", (name,)] == len(won) for name in names)
        total = sum(now["emorl_objective_attribution_sum", (name,)] for name in names)
        assert total == pytest.approx(len(won), rel=1e-3)


def test_scrapers_that_prefer_openmetrics_get_it(client: httpx.Client) -> None:
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(response.text)} >= {"emorl_requests", "emorl_info"}
    for nonsense in ("text/plain; version=x.y", "application/openmetrics-text; version=;", ",;,"):
        assert client.get("/metrics", headers={"Accept": nonsense}).status_code == 200


def test_nothing_a_client_sends_becomes_a_label(client: httpx.Client) -> None:
    marker = "ZEBRA"
    client.get(f"/{marker}")
    client.post("/generate", json={"prompt": marker, "profile": marker})
    client.post("/generate", json={"prompt": marker, "weights": {marker: 1}}, headers={"X-Request-ID": marker})
    client.post("/generate", json={"prompt": f"{marker} hurts"})
    assert marker not in client.get("/metrics").text


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("temperature", 1e-9),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1e-9),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-9),
        ("repetition_penalty", 101.0),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
    ],
)
def test_the_http_bounds_are_the_bounds_of_the_engine(field: str, bad: float) -> None:
    for refuse in (lambda: Sampling(**{field: bad}), lambda: GenerateRequest(prompt="x", **{field: bad})):  # type: ignore[arg-type]
        with pytest.raises(ValueError if refuse.__code__.co_names[0] == "GenerateRequest" else Exception, match=field):
            refuse()


def test_the_http_defaults_are_the_defaults_of_the_engine() -> None:
    engine = Sampling()
    for field in ("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed"):
        assert GenerateRequest.model_fields[field].default == getattr(engine, field), field


@pytest.mark.parametrize(
    ("reading", "use"),
    [
        (EngineReading(), 0.0),
        (EngineReading(slots=8, slots_used=2), 0.25),
        (EngineReading(slots=8, slots_used=2, kv_cache_bytes=30, kv_cache_limit=40), 0.75),
    ],
)
def test_queue_requests_and_cache_have_the_names_that_kubernetes_reads(reading: EngineReading, use: float) -> None:
    reading = replace(reading, running=3, waiting=5)
    text = Metrics(lambda: reading, []).render("")[0].decode()
    now = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert now["vllm:num_requests_running"] == now["emorl_requests_running"] == 3
    assert now["vllm:num_requests_waiting"] == now["emorl_requests_waiting"] == 5
    assert now["vllm:kv_cache_usage_perc"] == use
