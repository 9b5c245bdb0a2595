"""A request that fails, fails alone: the others' texts are what they would have been without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emorl_core.cache.kv import KVCache
from emorl_core.ensemble import Ensemble
from emorl_core.errors import EmorlError, EngineError, NonFinite, OutOfMemory
from emorl_core.fake import fake_ensemble
from emorl_core.lanes.index import LaneIndex
from emorl_core.models.fake import FakeModel
from emorl_core.types import Completion, Event, Failure, Request
from tests.core.driving import alone, completions, drain, failures, mixed_requests, poison, run, said

pytestmark = pytest.mark.both_shapes

BAD = "this one is broken"


def model_of(ensemble: Ensemble) -> FakeModel:
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    return model


def batch(ensemble: Ensemble, count: int = 9, seed: int = 21) -> tuple[list[Request], list[Request]]:
    """(sound requests, requests with the prompt that will fail)."""
    sound = mixed_requests(ensemble, count, seed)
    bad = [ensemble.request(BAD, seed=1, max_new_tokens=9, request_id=f"bad {i}") for i in range(2)]
    return sound, bad


def together(ensemble: Ensemble, sound: list[Request], bad: list[Request]) -> list[Event]:
    """The bad ones in the middle, some others arriving later."""
    for request in [*sound[:3], *bad, *sound[3:6]]:
        ensemble.engine.add(request)
    late = sound[6:]

    def before_step(step: int) -> None:
        if step in (2, 4, 5) and late:
            ensemble.engine.add(late.pop())

    return drain(ensemble.engine, before_step)


def assert_only_the_bad_failed(
    events: list[Event], sound: list[Request], bad: list[Request], kind: type[EmorlError]
) -> dict[str, Failure]:
    done, failed = completions(events), failures(events)
    assert set(failed) == {request.request_id for request in bad}
    assert set(done) == {request.request_id for request in sound}
    assert sum(isinstance(event, Failure) for event in events) == len(bad), "one Failure each, and one only"
    assert all(type(failure.error) is kind for failure in failed.values())
    expected = completions(alone(fake_ensemble(), sound))
    assert {name: said(completion) for name, completion in done.items()} == {
        name: said(completion) for name, completion in expected.items()
    }
    return failed


def raises(error: Exception, bad: tuple[int, ...], *, after: int = 0) -> Callable[[list[tuple[int, ...]]], None]:
    """A hook that raises when the bad prompt is in the batch, from the call number `after` on."""
    calls = 0

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if bad in prompts and calls > after:
            raise error

    return hook


@pytest.mark.parametrize("slots", [3, 16])
@pytest.mark.parametrize("after", [0, 3])
def test_a_step_that_raises_for_one_prompt_fails_that_request_alone(slots: int, after: int) -> None:
    ensemble = fake_ensemble(slots=slots)
    sound, bad = batch(ensemble)
    model_of(ensemble).on_step = raises(RuntimeError("secret prompt text"), bad[0].prompt_ids, after=after)
    failed = assert_only_the_bad_failed(together(ensemble, sound, bad), sound, bad, EngineError)
    for failure in failed.values():
        assert (
            failure.error.message == "the request failed inside the engine (RuntimeError)"
        )  # never the fault's own text
    assert ensemble.engine.runner.seats.cache.count == ensemble.engine.stats.slots_used == 0


@pytest.mark.parametrize("slots", [3, 16])
def test_a_prefill_that_raises_for_one_prompt_fails_that_request_alone(slots: int) -> None:
    ensemble = fake_ensemble(slots=slots)
    sound, bad = batch(ensemble)
    model_of(ensemble).on_prefill = raises(ValueError("x"), bad[0].prompt_ids)
    assert_only_the_bad_failed(together(ensemble, sound, bad), sound, bad, EngineError)


@pytest.mark.parametrize("slots", [3, 16])
def test_nan_in_one_request_fails_that_request_alone(slots: int) -> None:
    """Also for those who get its slot and its place in the key-value cache afterwards."""
    ensemble = fake_ensemble(slots=slots)
    sound, bad = batch(ensemble)
    model_of(ensemble).poisoned = {bad[0].prompt_ids}
    failed = assert_only_the_bad_failed(together(ensemble, sound, bad), sound, bad, NonFinite)
    assert {failure.error.code for failure in failed.values()} == {"non_finite"}


def test_a_prompt_that_was_poisoned_is_read_again() -> None:
    """What a NaN left behind is not in the prefill cache."""
    ensemble = fake_ensemble()
    _, bad = batch(ensemble, 1)
    model_of(ensemble).poisoned = {bad[0].prompt_ids}
    ensemble.engine.add(bad[0])
    assert set(failures(drain(ensemble.engine))) == {"bad 0"}
    assert ensemble.engine.stats.prefill_cache_bytes == 0
    model_of(ensemble).poisoned = set()
    assert said(run(ensemble.engine, [bad[0]])[0]) == said(alone(fake_ensemble(), [bad[0]])[0])


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory at 0xdead")])
def test_running_out_of_memory_is_told_by_its_own_code(error: Exception) -> None:
    ensemble = fake_ensemble()
    sound, bad = batch(ensemble)
    model_of(ensemble).on_step = raises(error, bad[0].prompt_ids)
    failed = assert_only_the_bad_failed(together(ensemble, sound, bad), sound, bad, OutOfMemory)
    assert {failure.error.code for failure in failed.values()} == {"out_of_memory"}


def test_an_error_of_our_own_keeps_its_kind() -> None:
    ensemble = fake_ensemble()
    sound, bad = batch(ensemble)
    model_of(ensemble).on_prefill = raises(NonFinite("here"), bad[0].prompt_ids)
    assert_only_the_bad_failed(together(ensemble, sound, bad), sound, bad, NonFinite)


def test_a_fault_that_comes_and_goes_costs_nobody_a_token() -> None:
    """One step fails for everybody and works when each runs alone: all complete, unchanged."""
    ensemble = fake_ensemble(slots=8)
    sound, _ = batch(ensemble)
    fails_at, calls = 5, 0

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise RuntimeError

    model_of(ensemble).on_step = hook
    events = together(ensemble, sound, [])
    assert not failures(events)
    assert {n: said(c) for n, c in completions(events).items()} == {
        c.request_id: said(c) for c in alone(fake_ensemble(), sound)
    }
    assert calls > fails_at


def test_a_model_that_always_fails_fails_everybody_and_then_recovers() -> None:
    ensemble = fake_ensemble(slots=2)
    sound, _ = batch(ensemble)
    model = model_of(ensemble)

    def broken(prompts: list[tuple[int, ...]]) -> None:
        raise RuntimeError

    model.on_step = broken
    for request in sound:
        ensemble.engine.add(request)
    assert set(failures(drain(ensemble.engine))) == {request.request_id for request in sound}
    model.on_step = None
    assert {c.request_id: said(c) for c in run(ensemble.engine, sound)} == {
        c.request_id: said(c) for c in alone(fake_ensemble(), sound)
    }


def test_nan_keys_left_in_a_slot_do_not_reach_whoever_gets_it(plain_bundle: Path) -> None:
    """On real attention: a masked NaN would still be NaN times zero."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32", slots=3)
    sound, bad = batch(ensemble)
    model = ensemble.engine.model
    poison(model, bad[0].prompt_ids)
    events = together(ensemble, sound, bad)
    assert set(failures(events)) == {request.request_id for request in bad}
    expected = alone(Ensemble.load(plain_bundle, device="cpu", dtype="float32"), sound)
    assert {n: said(c) for n, c in completions(events).items()} == {c.request_id: said(c) for c in expected}


class LaneOfNan(FakeModel):
    """NaN in one lane of every prompt."""

    def step(self, tokens: torch.Tensor, lanes: LaneIndex, cache: KVCache) -> torch.Tensor:
        hidden = super().step(tokens, lanes, cache)
        hidden[lanes.coefficients[:, 1] == 1.0] = float("nan")
        return hidden


def test_members_of_a_group_without_the_broken_lane_go_on() -> None:
    """One branch, one lane of it NaN: only those who give it weight fail."""
    ensemble = fake_ensemble()
    broken = LaneOfNan()
    broken.adapters = model_of(ensemble).adapters
    ensemble.engine.runner.batches[broken.compiled].model = broken
    mixes = [{"reflection": 1.0}, {"empathy": 0.1, "reflection": 1.0}, {"fluency": 1.0}, {"empathy": 1.0}]
    group = [
        ensemble.request("so much", weights=mix, seed=1, max_new_tokens=8, request_id=str(i))
        for i, mix in enumerate(mixes)
    ]
    ensemble.engine.add_group(group)
    events = drain(ensemble.engine)
    assert set(failures(events)) == {"1", "3"}
    expected = completions(alone(fake_ensemble(), [group[0], group[2]]))
    assert {n: said(c) for n, c in completions(events).items()} == {n: said(c) for n, c in expected.items()}


def test_a_fault_while_a_group_is_forking_loses_no_member() -> None:
    ensemble = fake_ensemble(slots=2)
    group = [
        ensemble.request(
            "so much",
            weights={"base": 1 + i, "empathy": 3},
            seed=i,
            temperature=1.5,
            request_id=str(i),
            max_new_tokens=10,
        )
        for i in range(10)
    ]
    calls = 0

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 3:
            raise RuntimeError

    model_of(ensemble).on_step = hook
    ensemble.engine.add_group(group)
    ended = [event for event in drain(ensemble.engine) if isinstance(event, (Completion, Failure))]
    assert sorted(event.request_id for event in ended) == sorted(request.request_id for request in group)
    expected = completions(alone(fake_ensemble(), group))
    for event in ended:
        if isinstance(event, Completion):
            assert said(event) == said(expected[event.request_id])
    assert sum(isinstance(event, Completion) for event in ended) >= 5
