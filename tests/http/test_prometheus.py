"""A real Prometheus scrapes a running server under load: what the dashboard and the alerts ask for is there."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.http.harness import PROMPT, Live, live, wait_until

pytestmark = pytest.mark.prometheus

DOCKER = Path(__file__).parents[2] / "docker"
RULES = DOCKER / "prometheus" / "alerts.yml"
RULE_TESTS = DOCKER / "prometheus" / "alerts_test.yml"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "emorl.json"
SCRAPES = 8  # rates need two; the rest is for requests of every kind to have ended in between


def promtool(*arguments: str, given: str | None = None) -> None:
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr  # where the linter of metrics complains


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_queries() -> list[tuple[str, str]]:
    """(where, query), with Grafana's variables filled in for a few scrapes a second."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            labels = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])
            assert labels is not None, variable
            asked.append((f"variable {variable['name']}", labels[1]))
    filled = []
    for where, query in asked:
        for name, value in (("$__rate_interval", "10s"), ("$__range", "1m"), ("$instance", ".*")):
            query = query.replace(name, value)
        assert "$" not in query, f"{where}: a variable this test does not know"
        filled.append((where, query))
    return filled


def without_threshold(expression: str) -> str:
    """An alert's query is empty while all is well; with `bool` every comparison answers 0 or 1 instead."""
    comparing, count = re.subn(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", expression)
    assert count, f"no comparison in {expression}"
    return comparing


@contextmanager
def load_on(server: Live) -> Iterator[None]:
    """Requests of every kind and outcome, one after the other on a few threads, until the block ends."""
    over = threading.Event()
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"prompt": PROMPT, "stream": True, "attribution": True, "seed": 3}),
        ("/generate", {"prompt": PROMPT, "weights": {"reflection": 0.7, "base": 0.3}, "attribution": True}),
        ("/generate", {"prompt": f"{PROMPT} again", "max_new_tokens": 3}),
        ("/generate", {"prompt": PROMPT, "max_new_tokens": 0}),  # refused
        ("/v1/completions", {"model": "fake", "prompt": PROMPT, "max_tokens": 8}),
        ("/v1/chat/completions", {"model": "fake:empathy", "messages": [{"role": "user", "content": PROMPT}]}),
    ]

    def send(offset: int) -> None:
        with server.client() as client:
            turn = offset
            while not over.is_set():
                path, body = bodies[turn % len(bodies)]
                with suppress(httpx.HTTPError):
                    client.post(path, json=body)
                turn += 1

    threads = [threading.Thread(target=send, args=(offset,), daemon=True) for offset in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


class Prometheus:
    """The program, with the project's own configuration but for the target and the pace."""

    def __init__(self, folder: Path, target: str) -> None:
        config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        config["rule_files"] = [str(RULES)]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=log,
            )
        self._client = httpx.Client(base_url=f"http://{address}", timeout=60, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        """The value of every series in an instant query's answer."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", expression
        return [float(series["value"][1]) for series in data["result"]]

    def wait_for(self, expression: str, what: str) -> None:
        """A number, from now or soon: a scrape that a busy machine answers late leaves a gap until the next one."""
        wait_until(lambda: any(map(math.isfinite, self.query(expression))), f"data for {what}")

    def answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with suppress(httpx.TransportError):
            return self._client.get("/-/ready").status_code == 200
        return False

    def stop(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(60)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen a server under load, which goes on while the tests ask."""
    ensemble = fake_ensemble(step_delay_s=0.005, kv_cache_bytes=2**20, prompt_lookup="on")
    with live(Settings(port=0), ensemble) as server, load_on(server):
        running = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://"))
        try:
            wait_until(running.answers, "Prometheus is ready")
            seen = f'count_over_time(emorl_batch_rows_count{{job="emorl"}}[1m]) >= {SCRAPES}'
            wait_until(lambda: bool(running.query(seen)), f"it has scraped {SCRAPES} times")
            yield running
        finally:
            running.stop()


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", str(DOCKER / "prometheus" / "prometheus.yml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(RULE_TESTS))
    cases = yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]
    expected = [rule for case in cases for rule in case["alert_rule_test"]]
    fires = {rule["alertname"] for rule in expected if rule.get("exp_alerts")}
    rests = {rule["alertname"] for rule in expected if not rule.get("exp_alerts")}
    assert fires == rests == {alert["alert"] for alert in alerts()}


def test_promtool_accepts_the_metrics(server: Live) -> None:
    with server.client() as client:
        client.post("/generate", json={"prompt": PROMPT, "attribution": True})
        lines = client.get("/metrics").text.splitlines(keepends=True)
        # A colon is for rules, says the linter; vLLM has it in its names, and whoever reads those cannot do without.
        promtool("check", "metrics", given="".join(line for line in lines if "vllm:" not in line))


def test_every_query_of_the_dashboard_returns_data(prometheus: Prometheus) -> None:
    queries = dashboard_queries()
    assert len(queries) > 30
    for where, query in queries:
        prometheus.wait_for(query, f"{where}: {query}")


def test_every_query_of_the_alerts_returns_data(prometheus: Prometheus) -> None:
    for alert in alerts():
        prometheus.wait_for(without_threshold(alert["expr"]), f"{alert['alert']}: {alert['expr']}")


def test_prometheus_evaluates_every_rule_without_error(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated()), "all rules have been evaluated")
    rules = evaluated()
    assert {rule["name"] for rule in rules} == {alert["alert"] for alert in alerts()}
    assert {rule["health"] for rule in rules} == {"ok"}, rules
    assert not [
        rule["name"] for rule in rules if rule["state"] == "firing" and rule["labels"]["severity"] == "critical"
    ]


def test_what_prometheus_stores_is_what_the_server_says(prometheus: Prometheus) -> None:
    """Types survive the scrape: a counter that Prometheus takes for a gauge would spoil rates on a restart."""
    described = prometheus.get("targets/metadata", match_target='{job="emorl"}')
    known = {entry["metric"].removesuffix("_total"): entry["type"] for entry in described}
    assert {known["emorl_requests"], known["emorl_engine_restarts"]} == {"counter"}
    assert known["emorl_batch_rows"] == "histogram"
    assert known["emorl_requests_waiting"] == "gauge"
    wait_until(lambda: prometheus.query('up{job="emorl"}') == [1.0], "the server is up")
