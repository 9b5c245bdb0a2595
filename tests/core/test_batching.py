"""Continuous batching: a request's result never depends on its company.

The fake model is exact (integers hashed out of the key-value cache), so one swapped, lost or leaked cache entry shows;
the tiny T5 shows the same of real tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.types import Completion, FinishReason, TokenEvent
from tests.core.driving import SENTENCES, alone, completions, drain, failures, mixed_requests, run, said, token_events

pytestmark = pytest.mark.both_shapes

Make = Callable[[int], Ensemble]


@pytest.fixture(params=["fake", "fake decoder-only", "prompted", "prompted decoder-only", "tiny T5"])
def make(request: pytest.FixtureRequest) -> Make:
    """slots -> an ensemble with an engine of its own."""
    if request.param != "tiny T5":
        prompts = SENTENCES if "prompted" in request.param else {}
        return lambda slots: fake_ensemble(slots=slots, encoder="decoder" not in request.param, prompts=prompts)
    folder: Path = request.getfixturevalue("plain_bundle")
    return lambda slots: Ensemble.load(folder, device="cpu", dtype="float32", slots=slots)


@pytest.mark.slow
def test_two_hundred_requests_through_eight_slots_equal_their_runs_alone(make: Make) -> None:
    ensemble = make(8)
    requests = mixed_requests(ensemble, 200, seed=1, longest=14)
    done = run(ensemble.engine, requests)
    expected = alone(make(1), requests)
    assert [said(completion) for completion in done] == [said(completion) for completion in expected]
    assert {completion.finish_reason for completion in done} == {FinishReason.STOP, FinishReason.LENGTH}
    assert len({completion.token_ids for completion in done}) > 100
    stats = ensemble.engine.stats
    assert (stats.waiting, stats.running, stats.slots_used, stats.lanes_running, stats.slots) == (0, 0, 0, 0, 8)


def test_alone_equals_in_a_batch_that_others_join_and_leave(make: Make) -> None:
    """Sixteen at a time; a third of them arrive while others run, some are cancelled while queued or running."""
    ensemble = make(16)
    requests = mixed_requests(ensemble, 36, seed=3, longest=16)
    cancelled = {request.request_id: 2 + 3 * i for i, request in enumerate(requests[5:32:6])}

    def before_step(step: int) -> None:
        for request in requests[:20] if step == 0 else requests[20 + 2 * (step - 1) : 20 + 2 * step]:
            ensemble.engine.add(request)
        for name, when in cancelled.items():
            if when == step:
                ensemble.engine.cancel(name)

    done = completions(drain(ensemble.engine, before_step))
    assert set(done) == {request.request_id for request in requests}
    expected = completions(alone(make(2), requests))
    for name, completion in done.items():
        if completion.finish_reason is FinishReason.CANCELLED:
            assert name in cancelled
            assert completion.token_ids == expected[name].token_ids[: len(completion.token_ids)]
        else:
            assert said(completion) == said(expected[name])
    assert any(completion.finish_reason is FinishReason.CANCELLED for completion in done.values())


def test_a_request_says_the_same_at_any_place_of_the_batch(make: Make) -> None:
    requests = mixed_requests(make(8), 8, seed=11)
    expected = {c.request_id: said(c) for c in alone(make(8), requests)}
    for turn in (3, 6):
        order = requests[turn:] + requests[:turn]
        assert {c.request_id: said(c) for c in run(make(8).engine, order)} == expected


def test_token_events_join_to_the_answer_and_end_with_it(make: Make) -> None:
    """One event a token, in order; their texts join to the answer's text, byte for byte; one completion at the end."""
    ensemble = make(4)
    requests = [r for r in mixed_requests(ensemble, 40, seed=5) if r.stream]
    for request in requests:
        ensemble.engine.add(request)
    events = drain(ensemble.engine)
    done = completions(events)
    assert not failures(events)
    for request in requests:
        own, completion = token_events(events, request.request_id), done[request.request_id]
        assert [event.index for event in own] == list(range(len(completion.token_ids)))
        assert tuple(event.token_id for event in own) == completion.token_ids
        assert tuple(event.text for event in own) == completion.token_texts
        assert "".join(event.text for event in own) == completion.text
        assert tuple(event.logprob for event in own) == completion.logprobs
        assert [event.completion for event in own] == [None] * (len(own) - 1) + [completion]
        assert not any(stop in completion.text for stop in request.sampling.stop)
        assert completion.completion_tokens <= request.sampling.max_new_tokens
        assert 0.0 <= completion.queue_s <= completion.first_token_s <= completion.total_s


def test_a_request_that_does_not_stream_gives_its_completion_only(make: Make) -> None:
    ensemble = make(4)
    request = ensemble.request("i drink", max_new_tokens=5, stream=False)
    ensemble.engine.add(request)
    events = drain(ensemble.engine)
    assert [type(event) for event in events] == [Completion]


def test_more_requests_than_slots_wait_and_are_served_in_order() -> None:
    ensemble = fake_ensemble(slots=2)
    requests = [ensemble.request("hard to keep up", max_new_tokens=3, min_new_tokens=3) for _ in range(5)]
    for request in requests:
        ensemble.engine.add(request)
    assert ensemble.engine.stats.waiting == 5
    first = ensemble.engine.step()
    stats = ensemble.engine.stats
    assert (stats.waiting, stats.running, stats.slots_used, stats.batch_rows) == (3, 2, 2, 2)
    order = [event.request_id for event in [*first, *drain(ensemble.engine)] if isinstance(event, Completion)]
    assert order == [request.request_id for request in requests]


def test_rows_that_finish_leave_at_once_and_waiting_ones_join_at_the_next_step() -> None:
    ensemble = fake_ensemble(slots=2)
    long, short, waiting = (
        ensemble.request("so much", max_new_tokens=n, min_new_tokens=n, request_id=str(n)) for n in (9, 2, 3)
    )
    for request in (long, short, waiting):
        ensemble.engine.add(request)
    rows = []
    while ensemble.engine.has_work:
        ensemble.engine.step()
        rows.append(ensemble.engine.stats.batch_rows)
    assert rows == [2, 2, 2, 2, 2, 1, 1, 1, 1]


def test_a_request_without_a_seed_gets_one_and_repeats_with_it(make: Make) -> None:
    ensemble = make(4)
    drawn = [ensemble.generate("I hope", temperature=1.0, max_new_tokens=12) for _ in range(6)]
    assert len({completion.seed for completion in drawn}) == 6
    assert len({completion.token_ids for completion in drawn}) > 1
    for completion in drawn:
        assert 0 <= completion.seed < 2**53  # a JavaScript client can send it back
        again = ensemble.generate("I hope", temperature=1.0, max_new_tokens=12, seed=completion.seed)
        assert said(again) == said(completion)


def test_the_completion_echoes_what_ran() -> None:
    ensemble = fake_ensemble()
    done = ensemble.generate("so much", {"reflection": 3, "base": 1}, seed=17, max_new_tokens=4)
    assert done.weights == {"base": 0.25, "reflection": 0.75, "empathy": 0.0, "fluency": 0.0}
    assert (done.seed, done.profile) == (17, None)
    assert done.prompt_tokens == len(ensemble.encode("so much"))
    named = ensemble.generate("so much", profile="empathy", max_new_tokens=4)
    assert (named.weights, named.profile) == ({"reflection": 0.0, "empathy": 1.0, "fluency": 0.0}, "empathy")


def test_the_end_of_sequence_is_a_token_without_text(make: Make) -> None:
    ensemble = make(8)
    done = [c for c in run(ensemble.engine, mixed_requests(ensemble, 60, seed=8)) if c.token_ids[-1] == 1]
    assert done
    for completion in done:
        assert completion.finish_reason is FinishReason.STOP
        assert len(completion.token_texts) == len(completion.token_ids) == len(completion.logprobs)
        assert 1 not in completion.token_ids[:-1]


def test_events_come_in_the_order_of_the_tokens_of_each_request(make: Make) -> None:
    ensemble = make(3)
    for request in mixed_requests(ensemble, 9, seed=2):
        ensemble.engine.add(request)
    last: dict[str, int] = {}
    for event in drain(ensemble.engine):
        if isinstance(event, TokenEvent):
            assert event.index == last.get(event.request_id, -1) + 1
            last[event.request_id] = event.index
