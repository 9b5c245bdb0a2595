"""Groups (`add_group`): one prompt under many weights and seeds shares every common prefix and changes no result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.types import Completion, FinishReason, Request, Sampling
from tests.core.driving import SENTENCES, alone, completions, drain, said, token_events

pytestmark = pytest.mark.both_shapes

Make = Callable[[int], Ensemble]


@pytest.fixture(params=["fake", "fake decoder-only", "prompted", "prompted decoder-only", "tiny T5"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param != "tiny T5":
        prompts = SENTENCES if "prompted" in request.param else {}
        return lambda slots: fake_ensemble(slots=slots, encoder="decoder" not in request.param, prompts=prompts)
    folder: Path = request.getfixturevalue("plain_bundle")
    return lambda slots: Ensemble.load(folder, device="cpu", dtype="float32", slots=slots)


def group_of(ensemble: Ensemble, size: int, **options: Any) -> list[Request]:
    """`size` mixes of three objectives along a line, pairs of them near to each other; base and a single lane besides."""
    settings: dict[str, Any] = {"max_new_tokens": 10, "seed": 3, **options}
    mixes: list[dict[str, float]] = [{"base": 1.0}, {"empathy": 1.0}]
    along = [(i // 2 + i * 1e-6) / size for i in range(size - 2)]
    mixes += [{"reflection": 1 - 2 * t, "empathy": 2 * t, "fluency": 0.3} for t in along]
    return [
        ensemble.request("so much on my mind", weights=mix, request_id=str(i), **settings)
        for i, mix in enumerate(mixes)
    ]


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}], ids=["greedy", "sampled"])
def test_members_equal_separate_runs_with_fewer_steps(make: Make, slots: int, options: dict[str, float]) -> None:
    """Also with fewer slots than branches: the others wait and are fed their tokens again."""
    ensemble, apart = make(slots), make(1)
    group = group_of(ensemble, 12, **options)
    ensemble.engine.add_group(group)
    done = completions(drain(ensemble.engine))
    expected = alone(apart, group)
    assert [said(done[request.request_id]) for request in group] == [said(completion) for completion in expected]
    assert 1 < len({completion.token_ids for completion in expected}) < 12, "some members must agree, some part"
    shared = ensemble.engine.stats.lane_row_steps
    assert max(completion.lane_row_steps for completion in done.values()) == shared
    if slots == 16:
        assert shared < apart.engine.stats.lane_row_steps
        assert ensemble.engine.stats.prefill_misses == 4  # each lane reads the prompt once


def test_members_that_agree_cost_as_much_as_one() -> None:
    ensemble = fake_ensemble()
    one = ensemble.request("so much", weights={"empathy": 1}, seed=1, max_new_tokens=10)
    done = alone(ensemble, [one])[0]
    cost = ensemble.engine.stats.lane_row_steps
    group = [replace(one, request_id=str(i)) for i in range(20)]
    ensemble.engine.add_group(group)
    assert ensemble.engine.stats.waiting == 20
    shared = completions(drain(ensemble.engine)).values()
    assert {completion.lane_row_steps for completion in shared} == {cost}
    assert {said(completion) for completion in shared} == {said(done)}


def test_members_with_different_seeds_fork_where_their_draws_differ(make: Make) -> None:
    ensemble, apart = make(16), make(1)
    group = [
        replace(request, sampling=replace(request.sampling, seed=i // 2))
        for i, request in enumerate(group_of(ensemble, 10, temperature=1.2))
    ]
    ensemble.engine.add_group(group)
    done = completions(drain(ensemble.engine))
    assert [said(done[r.request_id]) for r in group] == [said(completion) for completion in alone(apart, group)]


def test_members_may_differ_in_everything_but_prompt_stop_and_limit() -> None:
    ensemble = fake_ensemble()
    first = ensemble.request("so much", weights={"empathy": 1}, seed=1, max_new_tokens=15, stop=["e"])
    group = [
        replace(first, request_id="a", attribution=True, top_logprobs=3),
        replace(first, request_id="b", stream=False, weights=(0.5, 0.0, 0.0, 0.5)),
        replace(first, request_id="c", sampling=replace(first.sampling, min_new_tokens=5, temperature=1.0)),
        replace(first, request_id="d", combine="probs", sampling=replace(first.sampling, repetition_penalty=1.8)),
    ]
    ensemble.engine.add_group(group)
    events = drain(ensemble.engine)
    done = completions(events)
    assert [said(done[r.request_id]) for r in group] == [said(c) for c in alone(fake_ensemble(), group)]
    assert len(done["a"].attributions) == len(done["a"].top_logprobs) == len(done["a"].token_ids)
    assert all(len(top) == 3 for top in done["a"].top_logprobs)
    assert not done["b"].attributions
    assert not token_events(events, "b")
    assert len(token_events(events, "a")) == len(done["a"].token_ids)


@pytest.mark.parametrize("slots", [2, 16])
def test_a_member_that_stops_lets_the_others_go_on(slots: int) -> None:
    """The end of sequence is one of the tokens that branches part over; here members end one after the other."""
    ensemble = fake_ensemble(slots=slots, mean_length=2)
    group = [
        replace(r, sampling=replace(r.sampling, min_new_tokens=i))
        for i, r in enumerate(group_of(ensemble, 16, max_new_tokens=20))
    ]
    group += [replace(r, request_id=f"{r.request_id} again") for r in group]
    ensemble.engine.add_group(group)
    done = completions(drain(ensemble.engine))
    expected = alone(fake_ensemble(slots=1, mean_length=2), group)
    assert [said(done[r.request_id]) for r in group] == [said(completion) for completion in expected]
    assert len({len(completion.token_ids) for completion in done.values()}) > 5


def test_a_group_runs_beside_others(make: Make) -> None:
    ensemble = make(6)
    group = group_of(ensemble, 8)
    others = [ensemble.request("i drink", request_id=f"other {i}", seed=i, max_new_tokens=9) for i in range(4)]
    for i, request in enumerate(others):
        ensemble.engine.add(request)
        if i == 1:
            ensemble.engine.step()
            ensemble.engine.add_group(group)
    done = completions(drain(ensemble.engine))
    expected = completions(alone(make(1), [*group, *others]))
    assert {r.request_id: said(done[r.request_id]) for r in group} == {
        r.request_id: said(expected[r.request_id]) for r in group
    }
    for request in others[1:]:
        assert said(done[request.request_id]) == said(expected[request.request_id])


def test_a_group_without_seeds_draws_one_for_all_and_reports_it() -> None:
    ensemble = fake_ensemble()
    group = [
        replace(request, sampling=Sampling(temperature=1.0, max_new_tokens=3)) for request in group_of(ensemble, 5)
    ]
    ensemble.engine.add_group(group)
    done = completions(drain(ensemble.engine))
    assert len({completion.seed for completion in done.values()}) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, prompt_ids=(*r.prompt_ids, 5)),
        lambda r: replace(r, sampling=replace(r.sampling, stop=("x",))),
        lambda r: replace(r, sampling=replace(r.sampling, max_new_tokens=3)),
    ],
    ids=["prompt", "stop", "limit"],
)
def test_requests_that_do_not_belong_together_are_refused(change: Callable[[Request], Request]) -> None:
    ensemble = fake_ensemble()
    group = group_of(ensemble, 3)
    with pytest.raises(InvalidRequest, match="must share prompt, stop strings and token limits"):
        ensemble.engine.add_group([group[0], change(group[1])])
    assert not ensemble.engine.has_work


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0, 0.0, 0.0), (1.0,) * 5])
def test_weights_that_do_not_fit_the_lanes_are_refused(weights: tuple[float, ...]) -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidRequest, match="one per lane, not all 0") as caught:
        ensemble.engine.add(Request("x", (5, 1), weights))
    assert caught.value.param == "weights"


def test_an_empty_prompt_and_no_slots_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        fake_ensemble().engine.add(Request("x", (), (1.0, 0.0, 0.0, 0.0)))
    with pytest.raises(InvalidRequest, match="slots is 0"):
        fake_ensemble(slots=0)


def test_a_long_group_through_one_slot_completes_once_each() -> None:
    ensemble = fake_ensemble(slots=1)
    group = group_of(ensemble, 60, temperature=1.5, max_new_tokens=8)
    group = [replace(r, sampling=replace(r.sampling, seed=i)) for i, r in enumerate(group)]
    ensemble.engine.add_group(group)
    events = drain(ensemble.engine)
    done = completions(events)
    assert set(done) == {request.request_id for request in group}
    assert all(c.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) for c in done.values())
    assert sum(isinstance(event, Completion) for event in events) == 60
