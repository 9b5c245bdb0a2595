"""A bundle on two replicas of a real Ray: what clients see, also while a replica is killed, a bundle rolled, one removed."""

from __future__ import annotations

import asyncio
import os
import signal
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.replicas import Deployed, deployed, faults, kill_one, roll, scale, under_load
from emorl_core.scorers import build_scorer
from emorl_core.scorers.asking import Panel, Statement
from tests.builders import tiny_t5_bundle
from tests.http.harness import NO_TLS, PROMPT, error_of, events, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCORERS = {"empathy": "lexical_empathy", "reflection": "lexical_reflection"}
BODY = {"prompt": PROMPT, "max_new_tokens": 6, "seed": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("bundles") / "my-bundle", scorers=SCORERS)


@pytest.fixture(scope="module")
def at(bundle: Path) -> Iterator[Deployed]:
    with deployed(bundle, 2, 4, "--session-affinity", "--scorers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def client(at: Deployed) -> Iterator[httpx.Client]:
    url = f"http://{at.target.host}:{at.target.port}"
    with httpx.Client(base_url=url, timeout=300, verify=NO_TLS, limits=httpx.Limits(max_connections=20)) as made:
        yield made


def test_both_replicas_answer_alike_whole_and_as_streams(at: Deployed, client: httpx.Client) -> None:
    assert len(at.replicas()) == 2
    texts = {client.post("/generate", json=BODY).json()["text"] for _ in range(8)}
    streamed = events(client.post("/generate", json={**BODY, "stream": True}).text)
    assert texts == {streamed[-1]["text"]}


def test_an_answer_has_one_request_id_and_errors_are_the_servers_own(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"prompt": PROMPT, "temper": 1}, headers={"X-Request-ID": "mine-1"})
    assert answer.status_code == 422
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert "temper" in error_of(answer)["message"]
    assert client.get("/readyz").status_code == 200


def test_the_openai_client_streams(client: httpx.Client) -> None:
    with openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="unused", max_retries=0, timeout=300) as ai:
        (model, *_) = ai.models.list()
        whole = ai.completions.create(model=model.id, prompt=PROMPT, max_tokens=6, temperature=0)
        pieces = ai.completions.create(model=model.id, prompt=PROMPT, max_tokens=6, temperature=0, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text != ""


def test_drafts_and_sweeps_come_through_the_proxy(client: httpx.Client) -> None:
    drafts = client.post("/drafts", json={"prompt": PROMPT, "max_new_tokens": 6})
    assert drafts.status_code == 200, drafts.text
    assert drafts.json()["drafts"]
    weights = [{"reflection": 1}, {"empathy": 1}]
    swept = client.post("/sweep", json={"prompts": [PROMPT], "weights": weights, "max_new_tokens": 6})
    assert swept.status_code == 200, swept.text
    line = {"prompt": PROMPT, "from": weights[0], "to": weights[1], "max_new_tokens": 6}
    assert client.post("/sweep/line", json=line).status_code == 200


def test_another_process_scores_as_a_server_would_itself(at: Deployed, client: httpx.Client) -> None:
    texts = ["You feel tired of work, and that hurts.", "Hello."]
    panel = Panel({name: build_scorer(spec) for name, spec in SCORERS.items()})
    panel.score({place: (Statement(PROMPT), text) for place, text in enumerate(texts)})
    (victim,) = at.scorers()
    given = _scored(client, texts)
    assert [list(each["scores"].values()) for each in given] == [list(panel[place]) for place in range(2)]
    assert client.post("/drafts", json={"prompt": PROMPT, "max_new_tokens": 6}).json()["drafts"][0]["unscored"] == {}
    os.kill(victim, signal.SIGKILL)
    answer = client.post("/generate", json={**BODY, "score": True}).json()
    assert answer["text"]
    assert set(answer["unscored"]) <= set(SCORERS), "a text that nobody can score is there all the same"
    wait_until(lambda: _scored(client, texts) == given, "scorers in another process", 300)


def _scored(client: httpx.Client, texts: list[str]) -> list[dict[str, Any]]:
    answer = client.post("/score", json={"prompt": PROMPT, "texts": texts})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_a_client_that_leaves_gives_its_slot_back(client: httpx.Client) -> None:
    with client.stream("POST", "/generate", json={**BODY, "max_new_tokens": 64, "stream": True}) as answer:
        next(answer.iter_lines())
    wait_until(lambda: _counted(client, 'outcome="cancelled"') > 0, "it is cancelled, in one of the replicas", 300)


def test_a_session_stays_with_one_replica(client: httpx.Client) -> None:
    for session in ("first", "second", "third"):
        headers = {"x-session-id": session}
        before = _counted(client, 'route="/generate"', headers)
        for _ in range(5):
            assert client.post("/generate", json=BODY, headers=headers).status_code == 200
        assert _counted(client, 'route="/generate"', headers) == before + 5


def _counted(client: httpx.Client, label: str, headers: dict[str, str] | None = None) -> float:
    """The sum over the counters of whichever replica answers."""
    lines = client.get("/metrics", headers=headers).text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("emorl_requests_total") and label in line
    )


def test_a_killed_replica_costs_no_more_than_its_own_requests_and_is_replaced(
    at: Deployed, client: httpx.Client
) -> None:
    assert _found(at, lambda: kill_one(at), killed=True) == []
    wait_until(lambda: client.post("/generate", json=BODY).is_success, "an answer", 300)


def test_a_new_bundle_and_fewer_replicas_lose_nothing(
    at: Deployed, client: httpx.Client, bundle: Path, tmp_path: Path
) -> None:
    before = client.post("/generate", json=BODY).json()["text"]
    other = tiny_t5_bundle(tmp_path / "other", seed=1, scorers=SCORERS)
    assert _found(at, lambda: roll(at, other, 2)) == []
    after = {client.post("/generate", json=BODY).json()["text"] for _ in range(8)}
    assert len(after) == 1
    assert before not in after
    assert _found(at, lambda: scale(at, other, 1)) == []
    assert len(at.replicas()) == 1


def _found(at: Deployed, change: Callable[[], Awaitable[str | None]], *, killed: bool = False) -> list[str]:
    """What did not hold for six clients while it happened."""
    options = Namespace(clients=6, seconds=2, change_after=1, new_tokens=24)
    report, found = asyncio.run(under_load(at, change, options))
    return found + faults(report, options.clients, killed=killed)
