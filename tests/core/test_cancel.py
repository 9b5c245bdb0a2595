"""Cancellation takes effect at the next step, queued or running, and touches nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from emorl_core.engine.engine import Engine
from emorl_core.ensemble import Ensemble
from emorl_core.errors import EngineError
from emorl_core.fake import fake_ensemble
from emorl_core.types import Completion, Failure, FinishReason, Request
from tests.core.driving import alone, completions, drain, mixed_requests, said

pytestmark = pytest.mark.both_shapes


def held(ensemble: Ensemble, name: str, length: int = 12, **options: Any) -> Request:
    """A request that runs for exactly `length` tokens."""
    return ensemble.request(
        "so much on my mind", max_new_tokens=length, min_new_tokens=length, request_id=name, **options
    )


def steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.step()


def test_a_running_request_ends_at_the_next_step_with_the_tokens_it_has() -> None:
    ensemble = fake_ensemble()
    engine = ensemble.engine
    for name in ("stays", "goes"):
        engine.add(held(ensemble, name))
    steps(engine, 5)
    engine.cancel("goes")
    assert engine.stats.running == 2  # not before the step
    events = engine.step()
    (gone,) = completions(events).values()
    assert (gone.request_id, gone.finish_reason) == ("goes", FinishReason.CANCELLED)
    assert len(gone.token_ids) == 5
    assert "".join(gone.token_texts) == gone.text
    assert engine.stats.running == 1
    (stayed,) = completions(drain(engine)).values()
    assert said(stayed) == said(alone(fake_ensemble(), [held(ensemble, "stays", seed=stayed.seed)])[0])


def test_a_queued_request_ends_without_having_run() -> None:
    ensemble = fake_ensemble(slots=1)
    for name in ("runs", "waits", "next"):
        ensemble.engine.add(held(ensemble, name, 3))
    ensemble.engine.step()
    before = ensemble.engine.stats
    ensemble.engine.cancel("waits")
    events = ensemble.engine.step()
    gone = completions(events)["waits"]
    assert (gone.finish_reason, gone.token_ids, gone.text) == (FinishReason.CANCELLED, (), "")
    assert (before.waiting, ensemble.engine.stats.waiting) == (2, 1)
    assert [event.request_id for event in drain(ensemble.engine) if isinstance(event, Completion)] == ["runs", "next"]


def test_cancelling_before_the_first_step_runs_nothing() -> None:
    ensemble = fake_ensemble()
    ensemble.engine.add(held(ensemble, "x"))
    ensemble.engine.cancel("x")
    (event,) = drain(ensemble.engine)
    assert isinstance(event, Completion)
    assert event.finish_reason is FinishReason.CANCELLED
    assert ensemble.engine.stats.lane_row_steps == ensemble.engine.stats.prefill_misses == 0


def test_unknown_finished_and_twice_cancelled_ids_are_ignored() -> None:
    ensemble = fake_ensemble()
    engine = ensemble.engine
    engine.cancel("nobody")
    engine.add(held(ensemble, "a", 2))
    engine.add(held(ensemble, "b", 6))
    steps(engine, 3)
    for name in ("a", "nobody", "b", "b"):
        engine.cancel(name)
    assert [event.request_id for event in drain(engine)] == ["b"]


def test_a_name_can_be_used_again_after_its_request_was_cancelled_or_had_ended() -> None:
    ensemble = fake_ensemble()
    engine = ensemble.engine
    for _ in range(2):
        engine.add(held(ensemble, "again"))
        (done,) = completions(drain(engine)).values()
        assert (done.finish_reason, len(done.token_ids)) == (FinishReason.LENGTH, 12)
        engine.cancel("again")  # as a caller does that did not see it end
    twice = [ensemble.generate("so much on my mind", max_new_tokens=5, request_id="mine").token_ids for _ in range(2)]
    assert twice[0] == twice[1]
    assert len(twice[0]) > 0


def test_a_slot_that_a_cancelled_request_frees_is_used_in_the_same_step() -> None:
    ensemble = fake_ensemble(slots=1)
    for name in ("first", "second"):
        ensemble.engine.add(held(ensemble, name))
    steps(ensemble.engine, 2)
    ensemble.engine.cancel("first")
    events = ensemble.engine.step()
    assert [event.request_id for event in events] == ["first", "second"]


def test_cancelling_a_member_of_a_group_frees_the_lanes_that_only_it_used() -> None:
    ensemble = fake_ensemble()
    engine = ensemble.engine
    group = [
        held(ensemble, "keeps", weights={"reflection": 1}, seed=1, repetition_penalty=1.0),
        held(ensemble, "goes", weights={"reflection": 1, "empathy": 1e-9}, seed=1),
    ]
    engine.add_group(group)
    steps(engine, 2)
    assert (engine.stats.slots_used, engine.stats.lanes_running) == (1, 2)  # one branch, the union of the lanes
    engine.cancel("goes")
    engine.step()
    assert (engine.stats.slots_used, engine.stats.lanes_running) == (1, 1)
    (kept,) = completions(drain(engine)).values()
    assert said(kept) == said(alone(fake_ensemble(), group[:1])[0])


def test_cancelling_a_whole_group_leaves_nothing_behind() -> None:
    ensemble = fake_ensemble(slots=2)
    group = [
        held(ensemble, str(i), weights={"reflection": 1 + i, "empathy": 2, "fluency": 3 - i / 2}, seed=4)
        for i in range(6)
    ]
    ensemble.engine.add_group(group)
    steps(ensemble.engine, 4)
    for request in group:
        ensemble.engine.cancel(request.request_id)
    done = completions(drain(ensemble.engine))
    assert {completion.finish_reason for completion in done.values()} == {FinishReason.CANCELLED}
    assert set(done) == {request.request_id for request in group}
    assert len(ensemble.engine.runner.seats) == ensemble.engine.runner.seats.cache.count == 0


def test_drop_all_fails_everyone_and_starts_empty() -> None:
    ensemble = fake_ensemble(slots=2)
    engine = ensemble.engine
    requests = mixed_requests(ensemble, 5, seed=6)
    for request in requests:
        engine.add(request)
    engine.step()
    error = EngineError("the device is gone")
    still = {
        event.request_id for event in engine.drop_all(error) if isinstance(event, Failure) and event.error is error
    }
    assert not engine.has_work
    assert engine.stats.running == engine.stats.waiting == engine.runner.seats.cache.count == 0
    assert still <= {request.request_id for request in requests}
    assert len(still) >= 3
    again = mixed_requests(ensemble, 5, seed=7)
    for request in again:
        engine.add(request)
    assert [said(c) for c in completions(drain(engine)).values()] == [
        said(completions(alone(fake_ensemble(), again))[name]) for name in _order(engine, again)
    ]


def _order(engine: Engine, requests: list[Request]) -> list[str]:
    """The order in which an identical engine finishes them."""
    twin = fake_ensemble(slots=2).engine
    for request in requests:
        twin.add(request)
    return list(completions(drain(twin)))
