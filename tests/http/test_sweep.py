"""`POST /sweep`: the texts of the same requests one by one, as JSON and as they finish; it obeys limits and queue."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, events, live

VECTORS = [{"reflection": 1.0}, {"empathy": 1.0}, {"reflection": 2.0}, {"reflection": 0.5, "fluency": 0.5}]


def by_vector(answer: dict[str, Any], prompt: int = 0) -> dict[int, str]:
    return {index: found["text"] for found in answer["results"][prompt] for index in found["weights"]}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
def test_a_sweep_gives_the_texts_of_separate_requests(client: httpx.Client, options: dict[str, Any]) -> None:
    answer = client.post("/sweep", json={"prompts": [PROMPT, "work hurts"], "weights": VECTORS, **options}).json()
    for number, prompt in enumerate((PROMPT, "work hurts")):
        alone = [
            client.post("/generate", json={"prompt": prompt, "weights": vector, **options}).json()["text"]
            for vector in VECTORS
        ]
        assert by_vector(answer, number) == dict(enumerate(alone))
    assert answer["weights"][2] == {"reflection": 1.0, "empathy": 0.0, "fluency": 0.0}
    assert answer["cost"]["lane_row_steps"] < answer["cost"]["unshared_lane_row_steps"]


def test_the_stream_tells_every_result_and_ends_with_the_whole_answer(client: httpx.Client) -> None:
    body = {"prompts": [PROMPT], "resolution": 3, "stream": True}
    told = events(client.post("/sweep", json=body).text)
    items, done = told[:-1], told[-1]
    assert done["type"] == "done"
    assert {item["type"] for item in items} == {"item"}
    assert [item["completed"] for item in items][-1] == items[0]["total"] == 10
    assert {item["weights"]: item["text"] for item in items} == by_vector(done)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompts": [PROMPT]}, "weights"),
        ({"prompts": [PROMPT], "weights": VECTORS, "resolution": 2}, "weights"),
        ({"prompts": [], "resolution": 2}, "prompts"),
        ({"prompts": [PROMPT], "weights": []}, "weights"),
        ({"prompts": [PROMPT], "weights": [{"reflection": 1.0}, {"empaty": 1.0}]}, "weights.1"),
        ({"prompts": [PROMPT], "resolution": 1000}, "resolution"),
        ({"prompts": [PROMPT], "resolution": 2, "attribution": True}, "attribution"),
    ],
)
def test_bad_input_is_one_422_that_names_the_field(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = client.post("/sweep", json=body)
    assert response.status_code == 422
    assert error_of(response)["param"] == param


def test_forked_branches_that_wait_for_a_slot_are_not_timed_out_as_if_they_queued() -> None:
    slow = fake_ensemble(slots=2, step_delay_s=0.02)
    with live(Settings(port=0, queue_timeout_s=0.2), slow) as server, server.client() as client:
        answer = client.post("/sweep", json={"prompts": [PROMPT], "resolution": 4}, timeout=60)
        assert answer.status_code == 200
        assert len(by_vector(answer.json())) == 15


def test_a_sweep_that_the_queue_cannot_take_is_refused_at_the_door() -> None:
    slow = fake_ensemble(slots=1, step_delay_s=0.05, mean_length=60)
    with live(Settings(port=0, max_queue=0), slow) as server, server.client() as client:
        with client.stream("POST", "/generate", json={"prompt": PROMPT, "stream": True}) as running:
            lines = running.iter_lines()  # kept: a collected iterator closes the response
            next(lines)
            refused = client.post("/sweep", json={"prompts": [PROMPT], "resolution": 2})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
