"""The engine's thread: no exception in it may leave a client waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.types import Completion, Event, Failure, FinishReason, TokenEvent
from server.door.errors import EngineRestarted, NotReady, QueueTimeout, ShuttingDown
from server.engine.host import EngineHost
from server.serving.worker import Worker
from tests.http.harness import PROMPT, Live, error_of, events, idle, live, model_of, until, wait_until
from tests.http.test_disconnect import LONG, call


@asynccontextmanager
async def working(ensemble: Ensemble, queue_timeout_s: float = 60.0, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(EngineHost(ensemble, queue_timeout_s=queue_timeout_s), **options)
    worker.start()
    await asyncio.wait_for(worker.settled(), 60)
    try:
        yield worker
    finally:
        await worker.stop()


async def everything(worker: Worker, ensemble: Ensemble, **options: object) -> list[Event]:
    return [event async for event in steps_of(worker, ensemble, **options)]


async def steps_of(worker: Worker, ensemble: Ensemble, **options: object) -> AsyncIterator[Event]:
    channel = worker.submit([ensemble.request(PROMPT, **options)])  # type: ignore[arg-type]
    while not channel.finished or channel:
        assert await channel.wait(60)
        for event in channel.take():
            yield event


async def test_events_arrive_in_order_and_end_with_the_completion() -> None:
    ensemble = fake_ensemble()
    async with working(ensemble) as worker:
        *tokens, last = await everything(worker, ensemble)
        assert isinstance(last, Completion)
        assert [token.index for token in tokens if isinstance(token, TokenEvent)] == list(range(len(last.token_ids)))
        assert worker.pending == 0


async def test_a_request_the_engine_refuses_fails_alone() -> None:
    ensemble = fake_ensemble()
    async with working(ensemble) as worker:
        good = worker.submit([ensemble.request(PROMPT)])
        broken = ensemble.request(PROMPT)
        object.__setattr__(broken, "weights", (1.0,))
        (failure,) = (await drained(worker.submit([broken])),)
        assert isinstance(failure[-1], Failure)
        assert isinstance((await drained(good))[-1], Completion)
        assert worker.restarts == 0


async def test_a_worker_that_rests_gives_the_cache_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.thread._REST_S", 0.05)
    ensemble = fake_ensemble()
    cache = ensemble.engine.runner.seats.cache
    async with working(ensemble) as worker:
        await until(lambda: not ensemble.engine.has_work, "warmed up")
        held = max([cache.nbytes async for _ in steps_of(worker, ensemble, min_new_tokens=60, max_new_tokens=60)])
        await until(lambda: cache.nbytes < held, "the cache is back to its first size")
        assert isinstance((await everything(worker, ensemble))[-1], Completion)


async def test_of_many_prompts_few_wait_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.arriving._AHEAD", 2)
    ensemble = fake_ensemble()
    scheduler = ensemble.engine.scheduler
    waited: list[int] = []  # branches, before each step
    added: list[str] = []
    add_group, step = ensemble.engine.add_group, ensemble.engine.step
    orphans: list[Completion] = []
    async with working(ensemble, on_orphan=orphans.append) as worker:
        monkeypatch.setattr(
            ensemble.engine, "add_group", lambda group, job: (added.append(group[0].request_id), add_group(group, job))
        )
        monkeypatch.setattr(ensemble.engine, "step", lambda: (waited.append(len(scheduler.waiting)), step())[1])
        seen = await drained(worker.submit([ensemble.request(f"{PROMPT} {number}") for number in range(10)]))
        assert sorted(event.request_id for event in seen if isinstance(event, Completion)) == sorted(added)
        assert len(added) == 10
        assert max(waited) == 2
        unwanted = [ensemble.request(f"{PROMPT} {number}") for number in range(10)]
        worker.submit(unwanted)
        worker.cancel([request.request_id for request in unwanted])
        await until(lambda: len(orphans) == len(unwanted), "every cancelled request has ended")
    assert {orphan.finish_reason for orphan in orphans} == {FinishReason.CANCELLED}


async def test_a_request_goes_into_the_engine_before_the_rest_of_a_sweep_that_came_first() -> None:
    ensemble = fake_ensemble(slots=2)
    async with working(ensemble) as worker:
        many = [ensemble.request(f"{PROMPT} {number}", max_new_tokens=4) for number in range(100)]
        sweep = worker.submit(many, client="sweeper")
        (*_, last) = await drained(worker.submit([ensemble.request(PROMPT, max_new_tokens=4)], client="other"))
        assert isinstance(last, Completion)
        ended = [event for event in sweep.take() if isinstance(event, Completion)]
        assert len(ended) < len(many)
        assert worker.stats.waiting > len(many) // 2  # those that have not reached the engine count too
        assert sum(isinstance(event, Completion) for event in await drained(sweep)) + len(ended) == len(many)


async def test_what_has_not_reached_the_engine_in_time_is_told_so() -> None:
    ensemble = fake_ensemble(slots=1)
    async with working(ensemble, queue_timeout_s=0.05) as worker:
        running = worker.submit([ensemble.request(PROMPT, min_new_tokens=1000, max_new_tokens=1000, stream=True)])
        assert await running.wait(60)
        late = worker.submit([ensemble.request(f"{PROMPT} {number}") for number in range(100)])
        failures = await drained(late)
        assert len(failures) == 100
        assert all(isinstance(event, Failure) and isinstance(event.error, QueueTimeout) for event in failures)
        assert worker.stats.waiting == 0


async def drained(channel: object) -> list[Event]:
    from server.serving.channel import Channel

    assert isinstance(channel, Channel)
    seen: list[Event] = []
    while not channel.finished or channel:
        assert await channel.wait(60)
        seen += channel.take()
    return seen


class _Killed(BaseException):
    """Not even an Exception: what a thread dies of."""


@pytest.mark.parametrize("error", [RuntimeError("SECRET"), _Killed(), SystemExit()])
async def test_when_step_itself_fails_every_request_hears_of_it_and_the_next_one_is_served(
    error: BaseException,
) -> None:
    ensemble = fake_ensemble(slots=2)
    whole = ensemble.generate(PROMPT).text
    async with working(ensemble) as worker:
        step, calls = ensemble.engine.step, iter(range(1000))

        def failing() -> list[Event]:
            if next(calls) == 3:
                raise error
            return step()

        ensemble.engine.step = failing  # type: ignore[method-assign]
        channels = [worker.submit([ensemble.request(PROMPT, request_id=f"r{i}")]) for i in range(5)]
        for channel in channels:
            last = (await drained(channel))[-1]
            assert isinstance(last, Failure)
            assert isinstance(last.error, EngineRestarted)
        await until(lambda: worker.ready, "it is ready again")
        assert worker.restarts == 1
        assert worker.pending == 0
        (completion,) = [e for e in await everything(worker, ensemble) if isinstance(e, Completion)]
        assert completion.text == whole, "nothing of the time before is left in the engine"


async def test_a_warm_up_that_fails_from_the_start_is_reported_at_once() -> None:
    ensemble = fake_ensemble()
    model_of(ensemble).on_prefill = _raise
    worker = Worker(EngineHost(ensemble, queue_timeout_s=60.0))
    worker.start()
    await asyncio.wait_for(worker.settled(), 60)
    assert worker.failure is not None
    assert not worker.ready
    with pytest.raises(NotReady):
        worker.submit([ensemble.request(PROMPT)])


def _raise(prompts: list[tuple[int, ...]]) -> None:
    raise RuntimeError("no device")


async def test_an_engine_that_cannot_come_back_gives_up_after_a_few_tries() -> None:
    ensemble = fake_ensemble()
    async with working(ensemble) as worker:

        def dead() -> list[Event]:
            raise RuntimeError("device lost")

        ensemble.engine.step = dead  # type: ignore[method-assign]
        assert isinstance((await everything(worker, ensemble))[-1], Failure)
        await until(lambda: not worker.alive, "it has given up")
        assert worker.failure is not None
        assert worker.restarts == 3
        with pytest.raises(NotReady):
            worker.submit([ensemble.request(PROMPT)])


async def test_stopping_answers_everyone_who_waits() -> None:
    ensemble = fake_ensemble(slots=1, step_delay_s=0.005)
    async with working(ensemble) as worker:
        channels = [worker.submit([ensemble.request(PROMPT, request_id=f"r{i}")]) for i in range(3)]
        assert await worker.stop()
        for channel in channels:
            last = (await drained(channel))[-1]
            assert isinstance(last, Failure)
            assert isinstance(last.error, ShuttingDown)


async def test_a_step_that_hangs_is_seen_from_outside() -> None:
    ensemble = fake_ensemble()
    go_on = threading.Event()
    async with working(ensemble) as worker:
        model_of(ensemble).on_step = lambda prompts: assert_set(go_on)
        channel = worker.submit([ensemble.request(PROMPT, max_new_tokens=1)])
        await until(lambda: worker.stalled_for_s() >= 0.05, "the step takes long")
        model_of(ensemble).on_step = None
        go_on.set()
        assert isinstance((await drained(channel))[-1], Completion)
        assert worker.stalled_for_s() == 0.0


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)


@pytest.fixture
def server() -> Iterator[Live]:
    with live(ensemble=fake_ensemble(slots=4, step_delay_s=0.002)) as running:
        yield running


def test_a_poisoned_request_fails_alone_over_http(server: Live) -> None:
    poison = "poison that"
    ensemble = server.service.deployment().ensemble
    server.model.poisoned.add(ensemble.encode(poison))
    with server.client() as client, ThreadPoolExecutor(6) as pool:
        prompts = [PROMPT, poison, "you feel alone", poison, "work hurts", "so much change"]
        answers = list(pool.map(lambda p: client.post("/generate", json={"prompt": p, "stream": True}), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt == poison:
            assert (answer.status_code, error_of(answer)["code"]) == (500, "non_finite")
        else:
            done = events(answer.text)[-1]
            assert done["text"] == fake_ensemble().generate(prompt).text
    wait_until(lambda: idle(server), "everything is free again")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (torch.OutOfMemoryError("SECRET"), 503, "out_of_memory"),
        (MemoryError(), 503, "out_of_memory"),
        (RuntimeError("SECRET"), 500, "engine_error"),
        (ValueError("SECRET"), 500, "engine_error"),
    ],
)
@pytest.mark.parametrize("where", ["prefill", "step", "sampling"])
def test_a_fault_anywhere_in_the_engine_fails_only_the_request_at_fault(
    server: Live, error: Exception, status: int, code: str, where: str
) -> None:
    ensemble = server.service.deployment().ensemble
    guilty = ensemble.encode("poison that")

    def fail_on(prompts: list[tuple[int, ...]]) -> None:
        if guilty in prompts:
            raise error

    if where == "prefill":
        server.model.on_prefill = fail_on
    elif where == "step":
        server.model.on_step = fail_on
    else:
        choose = ensemble.engine.runner.batches[False]._choose

        def failing(hidden: object, layout: Any, part: slice) -> Any:
            fail_on([each.branch.prompt_ids for each in layout.asked[part]])
            return choose(hidden, layout, part)  # type: ignore[arg-type]

        ensemble.engine.runner.batches[False]._choose = failing  # type: ignore[method-assign]
    prompts = [PROMPT, "poison that", "you feel alone", "work hurts"]
    with server.client() as client, ThreadPoolExecutor(4) as pool:
        body: dict[str, Any] = {"min_new_tokens": 12, "max_new_tokens": 12}
        answers = list(pool.map(lambda p: client.post("/generate", json={**body, "prompt": p}), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt == "poison that":
            assert (answer.status_code, error_of(answer)["code"]) == (status, code)
            assert "SECRET" not in answer.text
        else:
            assert answer.json()["text"] == fake_ensemble().generate(prompt, **body).text
    assert server.service.deployment().worker.restarts == 0
    wait_until(lambda: idle(server), "everything is free again")


def test_a_fault_that_costs_only_time_shows_in_log_and_metric(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    """A step that failed for the whole batch and for nobody alone once went unseen, at a fifth of the speed."""

    worker = server.service.deployment().worker

    def fail_together(prompts: list[tuple[int, ...]]) -> None:
        if worker.stats.faults == 0 and len(set(prompts)) == 1:
            wait_until(lambda: worker.pending == 3, "all three have come")
        if len(set(prompts)) > 1:
            raise RuntimeError("SECRET")

    server.model.on_step = fail_together
    body: dict[str, Any] = {"min_new_tokens": 12, "max_new_tokens": 12}
    prompts = [PROMPT, "you feel alone", "work hurts"]
    with server.client() as client, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda p: client.post("/generate", json={**body, "prompt": p}), prompts))
        metrics = client.get("/metrics").text
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.json()["text"] == fake_ensemble().generate(prompt, **body).text
    faults = float(metrics.split("\nemorl_engine_faults_total ")[1].split("\n")[0])
    assert faults >= 1
    told = [record.getMessage() for record in caplog.records if record.name == "emorl.worker"]
    assert 1 <= len(told) <= 8, "ever more seldom"
    assert told[0].startswith("a step failed and was run again request by request, 1 so far: RuntimeError at")
    assert "SECRET" not in caplog.text


def test_streams_that_run_when_the_engine_dies_end_with_an_error_event(server: Live) -> None:
    engine = server.service.deployment().ensemble.engine
    connection = call(server, {**LONG, "stream": True})
    wait_until(lambda: engine.runner.lane_row_steps > 40, "tokens flow")
    step = engine.step

    def failing() -> list[Event]:
        engine.step = step  # type: ignore[method-assign]
        raise _Killed

    engine.step = failing  # type: ignore[method-assign]
    received = b""
    while b"[DONE]" not in received:
        part = connection.recv(65536)
        assert part, "the stream was cut instead of ended"
        received += part
    connection.close()
    assert b'"code":"engine_restarted"' in received
    wait_until(lambda: server.service.unready() is None, "it is ready again")
    with server.client() as client:
        assert client.post("/generate", json={"prompt": PROMPT}).status_code == 200
        assert "emorl_engine_restarts_total 1.0" in client.get("/metrics").text
