"""The door: permits, 429 before tokenising, the queue's own timeout."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from server.door.admission import Admission
from server.door.errors import KeyLimit, QueueFull
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, events, idle, live, wait_until
from tests.http.test_disconnect import LONG, call


def test_permits_are_bounded_and_return_exactly_once() -> None:
    admission = Admission(slots=2, queue=1)
    permits = [admission.acquire() for _ in range(3)]
    with pytest.raises(QueueFull):
        admission.acquire()
    for _ in range(3):
        permits[0].release()
    assert admission.in_use == 2
    admission.acquire()


def test_several_rows_take_several_places() -> None:
    admission = Admission(slots=2, queue=2)
    admission.acquire(rows=3)
    with pytest.raises(QueueFull):
        admission.acquire(rows=2)
    admission.acquire(rows=1)
    with pytest.raises(InvalidRequest, match="at most 4"):
        admission.acquire(rows=5)


def test_one_key_cannot_take_all_the_places() -> None:
    admission = Admission(slots=4, queue=4, per_key=2)
    held = [admission.acquire(key="a"), admission.acquire(key="a")]
    with pytest.raises(KeyLimit):
        admission.acquire(key="a")
    admission.acquire(key="b")
    held[0].release()
    admission.acquire(key="a")


def test_retry_after_grows_with_the_queue_and_how_long_answers_take() -> None:
    now = 0.0
    admission = Admission(slots=1, queue=10, clock=lambda: now)
    for _ in range(100):
        permit = admission.acquire()
        now += 5.0
        permit.release()
    for _ in range(11):
        admission.acquire()
    with pytest.raises(QueueFull) as full:
        admission.acquire()
    assert 45 <= full.value.retry_after_s <= 60


def test_a_full_queue_answers_429_before_any_tokenising() -> None:
    with live(Settings(port=0, max_queue=1), fake_ensemble(slots=1, step_delay_s=0.005)) as server:
        held = [call(server, LONG), call(server, {**LONG, "stream": True})]

        def taken() -> bool:  # not the permits: a request takes those before its own prompt is encoded
            now = server.service.reading()
            return now.running == 1 and now.waiting == 1

        wait_until(taken, "slot and queue are taken")
        ensemble = server.service.deployment().ensemble
        with server.client() as client, mock.patch.object(ensemble.tokenizer, "encode") as encode:
            for stream in (False, True):
                response = client.post("/generate", json={"prompt": PROMPT, "stream": stream})
                assert response.status_code == 429
                assert error_of(response)["code"] == "queue_full"
                assert int(response.headers["retry-after"]) >= 1
            encode.assert_not_called()
        for connection in held:
            connection.close()
        wait_until(lambda: idle(server), "everything is free again")


def test_a_request_that_waits_too_long_is_answered_and_leaves_the_queue() -> None:
    settings = Settings(port=0, queue_timeout_s=0.2, keep_alive_s=0.05)
    with live(settings, fake_ensemble(slots=1, step_delay_s=0.005)) as server, server.client() as client:
        running = call(server, LONG)
        wait_until(lambda: server.service.reading().running == 1, "the slot is taken")
        plain = client.post("/generate", json={"prompt": PROMPT})
        assert plain.status_code == 503
        assert error_of(plain)["code"] == "queue_timeout"
        assert "retry-after" in plain.headers
        # A stream that has already said that it is alive can only say it in an event.
        streamed = client.post("/generate", json={"prompt": PROMPT, "stream": True})
        assert streamed.status_code == 200
        assert ": keep-alive\n\n" in streamed.text
        (event,) = events(streamed.text)
        assert (event["type"], event["error"]["code"]) == ("error", "queue_timeout")
        assert server.service.reading().running == 1, "the running one has its slot, not a deadline"
        running.close()
        wait_until(lambda: idle(server), "everything is free again")


def test_a_sweep_that_has_begun_waits_for_its_own_turn_without_a_deadline() -> None:
    """Prompts beyond the slots waited behind the sweep's own branches, and timed out there."""
    settings = Settings(port=0, queue_timeout_s=0.5)
    with live(settings, fake_ensemble(slots=1, mean_length=500)) as server, server.client() as client:
        first_step_s = iter([0.6])  # by then the time of whoever still waits has run out
        server.model.on_step = lambda prompts: time.sleep(next(first_step_s, 0.0))
        body = {
            "prompts": [PROMPT, "you feel alone", "work hurts"],
            "weights": [{"empathy": 1.0}],
            "max_new_tokens": 20,
        }
        answer = client.post("/sweep", json=body)
        assert answer.status_code == 200, answer.text
        assert [len(texts) for texts in answer.json()["results"]] == [1, 1, 1]


def test_a_request_gets_a_slot_while_a_large_sweep_runs() -> None:
    with live(Settings(port=0), fake_ensemble(slots=2, step_delay_s=0.002, mean_length=500)) as server:
        sweep = call(server, {"prompts": [PROMPT], "resolution": 20, "max_new_tokens": 200}, path="/sweep")
        wait_until(lambda: server.service.deployment().worker.stats.slots_used == 2, "the sweep holds every slot")
        with server.client() as client:
            answer = client.post("/generate", json={"prompt": "work hurts", "max_new_tokens": 3})
            assert answer.status_code == 200
            assert server.service.reading().running > 0, "the sweep goes on"
        sweep.close()
        wait_until(lambda: idle(server), "everything is free again")


def test_more_clients_than_places_all_end_and_nothing_is_left() -> None:
    with (
        live(Settings(port=0, max_queue=8), fake_ensemble(slots=4)) as server,
        server.client() as client,
        ThreadPoolExecutor(24) as pool,
    ):
        bodies = [{"prompt": PROMPT, "stream": i % 2 == 0, "seed": i, "max_new_tokens": 8} for i in range(60)]
        answers = list(pool.map(lambda body: client.post("/generate", json=body), bodies))
        assert {answer.status_code for answer in answers} <= {200, 429}
        assert sum(answer.status_code == 200 for answer in answers) >= 12
        wait_until(lambda: idle(server), "everything is free again")
