"""A bundle on two replicas of a real Ray: streams, request ids, a replica that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.replicas import deployed, replica_pids
from benchmarks.streams import Target
from tests.builders import tiny_t5_bundle
from tests.http.harness import NO_TLS, PROMPT, events, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Deployed = tuple[httpx.Client, "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    bundle = tiny_t5_bundle(tmp_path_factory.mktemp("bundles") / "my-bundle")
    with deployed(bundle, replicas=2, slots=4) as (target, process), _client(target) as client:
        yield client, process


def _client(target: Target) -> httpx.Client:
    return httpx.Client(base_url=f"http://{target.host}:{target.port}", timeout=120, verify=NO_TLS)


def test_both_replicas_answer_alike_whole_and_as_streams(replicas: Deployed) -> None:
    client, process = replicas
    assert len(replica_pids(process)) == 2
    body = {"prompt": PROMPT, "max_new_tokens": 6, "seed": 1}
    texts = {client.post("/generate", json=body).json()["text"] for _ in range(8)}
    streamed = events(client.post("/generate", json={**body, "stream": True}).text)
    assert texts == {streamed[-1]["text"]}


def test_an_answer_has_one_request_id_and_errors_are_the_servers_own(replicas: Deployed) -> None:
    client, _ = replicas
    answer = client.post("/generate", json={"prompt": PROMPT, "temper": 1}, headers={"X-Request-ID": "mine-1"})
    assert answer.status_code == 422
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert "temper" in answer.json()["error"]["message"]
    assert client.get("/readyz").status_code == 200


def test_a_killed_replica_is_replaced(replicas: Deployed) -> None:
    client, process = replicas
    before = replica_pids(process)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in (now := replica_pids(process)) and len(now) >= 2, "another replica", 300)
    wait_until(
        lambda: client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 2}).is_success, "an answer", 300
    )
