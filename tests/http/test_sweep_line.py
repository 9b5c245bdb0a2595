"""`POST /sweep/line`: the intervals of `Ensemble.sweep_line`, through the queue and the engine's thread like any request."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeTokenizer
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, events, idle, in_process, live, until, wait_until

BODY: dict[str, Any] = {"prompt": PROMPT, "from": {"reflection": 1.0}, "to": {"empathy": 1.0}}
OTHERS = [
    BODY,
    {**BODY, "from": {"reflection": 3, "fluency": 1}, "to": {"fluency": 5, "base": 2}},
    {**BODY, "max_new_tokens": 5},
    {**BODY, "stop": ["hard"], "min_new_tokens": 3},
    {**BODY, "from": {"reflection": -0.5}, "normalize": False, "max_new_tokens": 4},
]


@pytest.mark.parametrize("body", OTHERS)
def test_the_intervals_are_those_of_the_front_door(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/sweep/line", json=body).json()
    options = {name: value for name, value in body.items() if name not in ("prompt", "from", "to")}
    line = fake_ensemble(slots=4).sweep_line(body["prompt"], body["from"], body["to"], **options)
    found = [(each["start"], each["end"], each["text"], each["finish_reason"]) for each in answer["intervals"]]
    assert found == [(i.start, i.end, i.text, i.finish_reason.value) for i in line.intervals]
    assert len(found) > 1
    assert (answer["from"], answer["to"]) == (line.from_weights, line.to_weights)
    assert answer["lane_row_steps"] == line.lane_row_steps


def test_texts_in_the_middle_of_intervals_are_those_of_plain_requests(client: httpx.Client) -> None:
    for interval in client.post("/sweep/line", json=BODY).json()["intervals"]:
        t = (interval["start"] + interval["end"]) / 2
        weights = {"reflection": 1 - t, "empathy": t}
        alone = client.post("/generate", json={"prompt": PROMPT, "weights": weights}).json()
        assert (alone["text"], alone["finish_reason"]) == (interval["text"], interval["finish_reason"])


def test_the_stream_tells_intervals_as_they_are_found_and_ends_with_the_whole_answer(client: httpx.Client) -> None:
    whole = client.post("/sweep/line", json=BODY).json()
    *found, done = events(client.post("/sweep/line", json={**BODY, "stream": True}).text)
    assert {each["type"] for each in found} == {"interval"}
    assert (done["type"], done["intervals"]) == ("done", whole["intervals"])
    assert sum(each["end"] - each["start"] for each in found) == pytest.approx(1.0)
    assert {each["text"] for each in found} == {each["text"] for each in whole["intervals"]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"from": None}, "from"),
        ({"to": {"empaty": 1.0}}, "to.empaty"),
        ({"from": {}}, "from"),
        ({"to": {"empathy": -1.0}}, "to.empathy"),
        ({"min_width": 0.0}, "min_width"),
        ({"max_new_tokens": 5000}, "max_new_tokens"),
        ({"temperature": 1.0}, "temperature"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_bad_input_is_one_422_that_names_the_field(client: httpx.Client, change: dict[str, Any], param: str) -> None:
    response = client.post("/sweep/line", json={**BODY, **change})
    assert response.status_code == 422
    assert error_of(response)["param"] == param


def test_a_line_with_more_intervals_than_the_server_allows_is_refused_by_the_setting() -> None:
    with live(Settings(port=0, max_sweep=2)) as server, server.client() as client:
        response = client.post("/sweep/line", json=BODY)
        assert response.status_code == 422
        assert "max_sweep" in error_of(response)["message"]
        wait_until(lambda: idle(server), "nothing of it is left")
        assert client.post("/sweep/line", json={**BODY, "to": BODY["from"]}).status_code == 200


def test_lines_run_beside_streams_and_count_in_the_metrics() -> None:
    with live(Settings(port=0), fake_ensemble(step_delay_s=0.01, mean_length=40)) as server, server.client() as client:
        with client.stream("POST", "/generate", json={"prompt": PROMPT, "stream": True}) as running:
            lines = running.iter_lines()
            next(lines)
            answer = client.post("/sweep/line", json={**BODY, "max_new_tokens": 6})
            assert answer.status_code == 200
            assert [line for line in lines if line][-1] == "data: [DONE]"
        text = client.get("/metrics").text
        assert 'emorl_requests_total{outcome="stop",route="/sweep/line"} 1.0' in text
        wait_until(lambda: idle(server), "all has been returned")


def test_a_long_line_keeps_neither_lines_nor_requests_waiting() -> None:
    ensemble = fake_ensemble(step_delay_s=0.02, mean_length=60)
    with live(Settings(port=0), ensemble) as server, server.client() as client:
        body = {**BODY, "max_new_tokens": 1000, "stream": True, "min_new_tokens": 990}
        with client.stream("POST", "/sweep/line", json=body) as first:
            wait_until(lambda: server.service.reading().running == 1, "the first runs")
            beside = client.post("/sweep/line", json={**BODY, "max_new_tokens": 3})
            assert beside.status_code == 200
            assert client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 3}).status_code == 200, (
                "others go on"
            )
            wait_until(lambda: server.service.reading().running == 1, "the first is still at it")
            first.close()
        wait_until(lambda: idle(server), "a line whose reader has gone ends")


def test_a_line_that_takes_too_long_is_ended_by_the_setting() -> None:
    settings = Settings(port=0, sweep_line_timeout_s=0.2)
    with live(settings, fake_ensemble(step_delay_s=0.02, mean_length=60)) as server, server.client() as client:
        body = {**BODY, "max_new_tokens": 1024, "min_new_tokens": 1000, "min_width": 1e-9}
        response = client.post("/sweep/line", json=body)
        assert response.status_code == 422
        assert "sweep_line_timeout_s" in error_of(response)["message"]
        wait_until(lambda: idle(server), "nothing of it is left")


def test_a_line_that_breaks_fails_alone(client: httpx.Client) -> None:
    ensemble = fake_ensemble()
    model: Any = ensemble.engine.model
    model.poisoned.add(tuple(FakeTokenizer().encode("bad prompt [SEP] ")))
    with live(Settings(port=0), ensemble) as server, server.client() as own:
        broken = own.post("/sweep/line", json={**BODY, "prompt": "bad prompt"})
        assert (broken.status_code, error_of(broken)["code"]) == (500, "non_finite")
        prompts: list[tuple[int, ...]] = []
        model.on_step = lambda batch: prompts.extend(batch) or (_ for _ in ()).throw(ValueError("a secret"))
        failed = own.post("/sweep/line", json=BODY)
        assert (failed.status_code, error_of(failed)["code"]) == (500, "engine_error")
        assert "secret" not in failed.text
        model.on_step = None
        assert own.post("/sweep/line", json=BODY).status_code == 200
        assert server.service.deployment().worker.restarts == 0


async def test_a_queue_that_is_full_refuses_a_line_at_the_door() -> None:
    ensemble = fake_ensemble(slots=1, step_delay_s=0.02, mean_length=200)
    async with in_process(Settings(max_queue=0), ensemble) as (client, service):
        running = asyncio.create_task(client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 60}))
        await until(lambda: service.admission.in_use == 1, "the first is admitted")
        refused = await client.post("/sweep/line", json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        await running
