"""Requests of many prompts are read by a thread of their own, so that others are answered meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from emorl_core.fake import fake_ensemble
from server.serving import bulk
from server.settings import Settings
from tests.http.harness import PROMPT, live


@pytest.mark.parametrize(("prompts", "thread"), [(2, "emorl-helper"), (bulk.MANY + 1, "emorl-bulk")])
def test_many_prompts_are_read_by_a_thread_of_their_own(prompts: int, thread: str) -> None:
    ensemble = fake_ensemble()
    seen: list[str] = []
    plan = ensemble.sweep_plan

    def watched(*args: Any, **options: Any) -> object:
        seen.append(threading.current_thread().name)
        return plan(*args, **options)

    ensemble.sweep_plan = watched  # type: ignore[method-assign]
    with live(Settings(port=0), ensemble) as server, server.client() as client:
        body = {"prompts": [f"{PROMPT} {i}" for i in range(prompts)], "weights": [{"empathy": 1.0}]}
        answer = client.post("/sweep", json=body)
        assert answer.status_code == 200
        assert len(answer.json()["results"]) == prompts
    (name,) = seen
    assert name.startswith(thread)


def test_others_are_answered_while_many_prompts_are_read() -> None:
    ensemble = fake_ensemble()
    reading, finish = threading.Event(), threading.Event()
    plan = ensemble.sweep_plan

    def slow(*args: Any, **options: Any) -> object:
        reading.set()
        assert finish.wait(30)
        return plan(*args, **options)

    ensemble.sweep_plan = slow  # type: ignore[method-assign]
    with live(Settings(port=0), ensemble) as server, server.client() as client:
        body = {"prompts": [PROMPT] * (bulk.MANY + 1), "weights": [{"empathy": 1.0}]}
        sweeps = [threading.Thread(target=client.post, args=("/sweep",), kwargs={"json": body}) for _ in range(8)]
        for each in sweeps:
            each.start()
        assert reading.wait(30)
        try:  # as many as there are could hold every helper
            assert client.post("/generate", json={"prompt": PROMPT}).status_code == 200
        finally:
            finish.set()
            for each in sweeps:
                each.join()
