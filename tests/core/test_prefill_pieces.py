"""Prompts read in pieces: so many tokens a step, while the others get theirs; nothing that anybody says changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from emorl_core.cache.kv import Memory
from emorl_core.engine.driver import Driver
from emorl_core.engine.sweep import SweepResult
from emorl_core.ensemble import Ensemble
from emorl_core.errors import EngineError, InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from emorl_core.models.family import Piece
from emorl_core.types import FinishReason, Request, TokenEvent
from tests.core.driving import alone, completions, drain, failures, joining, mixed_requests, run, said

pytestmark = pytest.mark.both_shapes

LONG = tuple(range(2, 120))


def model_of(ensemble: Ensemble) -> FakeModel:
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    return model


def ask(ensemble: Ensemble, name: str, ids: Sequence[int], length: int = 8, **options: object) -> Request:
    """A request with these tokens, whose reply has so many."""
    options = {"weights": {"empathy": 1.0}, "seed": 3} | options
    made = ensemble.request("x", max_new_tokens=length, min_new_tokens=length, request_id=name, **options)
    return replace(made, prompt_ids=(*ids, 1))


def texts(result: SweepResult) -> dict[tuple[int, int], str]:
    return {(item.prompt_index, item.weights_index): item.text for item in result.items}


def read_at_once(ensemble: Ensemble) -> list[int]:
    """Fills with the tokens that the model reads in each step."""
    model, engine, read = model_of(ensemble), ensemble.engine, []
    prefill, step = model.prefill, engine.step

    def counted(pieces: Sequence[Piece]) -> list[Memory]:
        read[-1] += sum((piece.stop - piece.start) * piece.passage.width for piece in pieces)
        return prefill(pieces)

    def stepped() -> list[object]:
        read.append(0)
        return step()

    model.prefill = counted  # type: ignore[method-assign]
    engine.step = stepped  # type: ignore[method-assign, assignment]
    return read


def one_runs(ensemble: Ensemble) -> None:
    """A stream that waits for every step, so that each reads little."""
    ensemble.engine.add(ask(ensemble, "runs", (40, 41), 400))
    ensemble.engine.step()
    assert len(ensemble.engine.runner.seats)


@pytest.mark.parametrize("tokens", [1, 3, 16, 100])
@pytest.mark.parametrize("cached", [0, 2**20])
def test_alone_equals_in_company_in_pieces_of_any_size(tokens: int, cached: int) -> None:
    ensemble = fake_ensemble(slots=5, prefill_tokens=tokens, prefill_cache_bytes=cached)
    requests = mixed_requests(ensemble, 24, seed=5, longest=14)
    expected = {c.request_id: said(c) for c in alone(fake_ensemble(), requests)}
    assert joining(ensemble, requests) == expected
    assert ensemble.engine.runner.reader.nbytes == 0


@pytest.mark.parametrize("tokens", [1, 7, 50])
def test_no_step_reads_more_than_it_may(tokens: int) -> None:
    """But for what cannot be cut: an encoder's prompt, if it is the only one of the step."""
    ensemble = fake_ensemble(prefill_tokens=tokens)
    one_runs(ensemble)
    read = read_at_once(ensemble)
    requests = [ask(ensemble, str(i), LONG[: 30 * i + 1]) for i in range(1, 4)]
    for request in requests:
        ensemble.engine.add(request)
    drain(ensemble.engine)
    whole = [len(request.prompt_ids) for request in requests]
    assert max(read) <= (max(tokens, *whole) if model_of(ensemble).encoder else tokens)


@pytest.mark.parametrize("tokens", [1, 7])
def test_where_nobody_waits_a_step_reads_more(tokens: int) -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=tokens)
    read = read_at_once(ensemble)
    ensemble.engine.add(ask(ensemble, "long", LONG))
    ensemble.engine.add(ask(ensemble, "longer", (*LONG, 3)))
    ensemble.engine.step()
    ensemble.engine.step()
    assert read == [8 * tokens] * 2
    one = fake_ensemble(encoder=False, prefill_tokens=tokens)
    one_runs(one)
    read = read_at_once(one)
    one.engine.add(ask(one, "long", LONG))
    one.engine.step()
    assert read == [tokens]


def test_streams_get_their_tokens_while_a_long_prompt_is_read() -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=10)
    engine = ensemble.engine
    for name in "ab":
        engine.add(ask(ensemble, name, (40, 41), 40))
    engine.step()
    engine.add(ask(ensemble, "long", LONG))
    seen = [[e.request_id for e in engine.step() if isinstance(e, TokenEvent)] for _ in range(13)]
    assert seen[:11] == [["a", "b"]] * 11
    assert seen[11:] == [["a", "b", "long"]] * 2, "118 tokens, ten a step; the last one is fed by the step itself"
    assert engine.stats.running == 3
    assert engine.stats.batch_rows == 3


def test_short_prompts_do_not_wait_for_a_long_one_nor_it_for_ever_for_them() -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=8, prefill_cache_bytes=0)
    engine = ensemble.engine
    one_runs(ensemble)
    engine.add(ask(ensemble, "long", LONG, 1))
    engine.step()
    ended: list[str] = []
    for i in range(60):
        engine.add(ask(ensemble, f"short {i}", (40, 41, 2 + i), 1))
        ended += [event.request_id for event in engine.step() if isinstance(event, TokenEvent)]
    ended = [name for name in ended if name != "runs"]
    assert ended[0] == "short 0"
    assert "long" in ended[20:35], "half of each step is its own"


def test_a_branch_that_is_read_can_be_cancelled() -> None:
    ensemble = fake_ensemble(encoder=False, slots=2, prefill_tokens=10)
    engine = ensemble.engine
    one_runs(ensemble)
    long = ask(ensemble, "long", LONG)
    engine.add(long)
    for _ in range(4):
        engine.step()
    engine.add(ask(ensemble, "next", (40, 41)))
    engine.cancel("long")
    gone = completions(engine.step())["long"]
    assert (gone.finish_reason, gone.token_ids) == (FinishReason.CANCELLED, ())
    done = completions(drain(engine))["next"]
    assert said(done) == said(run(fake_ensemble(encoder=False).engine, [ask(ensemble, "next", (40, 41))])[0])
    assert (engine.runner.reader.nbytes, engine.stats.slots_used) == (0, 0)
    before = engine.stats.prefill_tokens_computed
    again = run(engine, [replace(long, request_id="again")])[0]
    assert engine.stats.prefill_tokens_computed - before == len(LONG) - 40, "what was read of it is kept"
    assert said(again) == said(run(fake_ensemble(encoder=False).engine, [long])[0])


def test_members_that_leave_while_their_prompt_is_read_take_their_lanes_along() -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=10)
    one_runs(ensemble)
    before = ensemble.engine.stats.prefill_tokens_computed
    mixes = ({"empathy": 1.0}, {"reflection": 1.0}, {"fluency": 1.0})
    group = [ask(ensemble, str(i), LONG, weights=mix) for i, mix in enumerate(mixes)]
    ensemble.engine.add_group(group)
    ensemble.engine.step()
    ensemble.engine.cancel("1")
    done = completions(drain(ensemble.engine))
    assert done["1"].token_ids == ()
    assert ensemble.engine.stats.prefill_tokens_computed - before <= 2 * len(LONG) + 10
    expected = completions(alone(fake_ensemble(encoder=False), group))
    assert all(said(done[name]) == said(expected[name]) for name in "02")


def test_who_waits_for_anothers_beginning_goes_on_when_that_one_leaves() -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=10, prefill_cache_bytes=0)
    one_runs(ensemble)
    before = ensemble.engine.stats.prefill_tokens_computed
    requests = [ask(ensemble, name, (*LONG, *tail)) for name, tail in (("one", (5, 6)), ("two", (7,)))]
    for request in requests:
        ensemble.engine.add(request)
    for _ in range(3):
        ensemble.engine.step()
    ensemble.engine.cancel("one")
    done = completions(drain(ensemble.engine))["two"]
    assert said(done) == said(run(fake_ensemble(encoder=False).engine, requests[1:])[0])
    assert ensemble.engine.stats.prefill_tokens_computed - before == len(LONG) + 1


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("tokens", [6, 40, None])
def test_a_piece_that_raises_fails_its_prompt_alone(tokens: int | None, after: int) -> None:
    ensemble = fake_ensemble(slots=4, prefill_tokens=tokens)
    sound = mixed_requests(ensemble, 9, seed=21)
    bad = [ask(ensemble, f"bad {i}", LONG) for i in range(2)]
    calls = 0

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        if bad[0].prompt_ids in prompts:
            calls += 1
            if calls > after:
                raise ValueError

    model_of(ensemble).on_prefill = hook
    for request in [*sound[:3], *bad, *sound[3:]]:
        ensemble.engine.add(request)
    events = drain(ensemble.engine)
    whole = tokens is None or model_of(ensemble).encoder
    assert set(failures(events)) == (set() if whole and after else {"bad 0", "bad 1"})
    done = {name: said(c) for name, c in completions(events).items() if not name.startswith("bad")}
    assert done == {c.request_id: said(c) for c in alone(fake_ensemble(), sound)}
    assert ensemble.engine.runner.reader.nbytes == 0


def test_pieces_and_steps_that_fail_now_and_then_cost_nobody_a_token() -> None:
    ensemble = fake_ensemble(slots=6, prefill_tokens=9)
    sound = mixed_requests(ensemble, 12, seed=2)
    calls = 0

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 5 and len(set(prompts)) > 1:  # not where one is retried individually
            raise RuntimeError

    model_of(ensemble).on_prefill = model_of(ensemble).on_step = hook
    done = run(ensemble.engine, sound)
    assert ensemble.engine.faults > 2
    assert [said(c) for c in done] == [said(c) for c in alone(fake_ensemble(), sound)]


def test_a_fault_of_others_leaves_what_is_being_read() -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=10, prefill_cache_bytes=0)
    engine, calls = ensemble.engine, 0
    for name in "ab":
        engine.add(ask(ensemble, name, (40, 41), 30))
    engine.step()
    long = ask(ensemble, "long", LONG)
    engine.add(long)

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError

    model_of(ensemble).on_step = hook
    before = engine.stats.prefill_tokens_computed
    done = completions(drain(engine))
    assert engine.faults == 1
    again = 2 * (2 + 6) * 2  # a and b, with six tokens of their replies, by themselves and when they come back
    assert engine.stats.prefill_tokens_computed - before <= len(LONG) + again
    assert said(done["long"]) == said(run(fake_ensemble(encoder=False).engine, [long])[0])


@pytest.mark.parametrize("tokens", [2, 11])
def test_sweeps_fork_as_they_do_without(tokens: int) -> None:
    options = {"resolution": 5, "max_new_tokens": 10}
    pieces = fake_ensemble(slots=3, prefill_tokens=tokens).sweep(["so much", "i drink"], **options)
    whole = fake_ensemble(slots=3).sweep(["so much", "i drink"], **options)
    assert texts(pieces) == texts(whole)


@pytest.mark.parametrize("tokens", [2, 11])
def test_segments_are_what_they_are_without(tokens: int) -> None:
    asked = ("so much", {"reflection": 1}, {"empathy": 1, "fluency": 1})
    pieces = fake_ensemble(slots=3, prefill_tokens=tokens).sweep_line(*asked, max_new_tokens=6)
    assert pieces.intervals == fake_ensemble(slots=3).sweep_line(*asked, max_new_tokens=6).intervals


def test_what_is_preempted_reads_on_from_what_it_had() -> None:
    """A plain request takes one of a sweep's slots; the branch that loses it finds what it had read and written."""
    ensemble = fake_ensemble(encoder=False, slots=2, prefill_tokens=4)
    engine = ensemble.engine
    plan = ensemble.sweep_plan("so much", resolution=2, max_new_tokens=40, min_new_tokens=40)
    expected = fake_ensemble(encoder=False).sweep("so much", resolution=2, max_new_tokens=40, min_new_tokens=40)
    driver, items = Driver(engine), []
    late = ask(ensemble, "late", LONG)

    def joins(item: object) -> None:
        if not items:
            engine.add(late)
        items.append(item)

    found = driver.sweep(plan, joins)
    assert texts(found) == texts(expected)


def test_all_are_dropped_in_the_middle() -> None:
    ensemble = fake_ensemble(encoder=False, prefill_tokens=10)
    ensemble.engine.add(ask(ensemble, "long", LONG))
    ensemble.engine.step()
    assert set(failures(ensemble.engine.drop_all(EngineError("again")))) == {"long"}
    assert not ensemble.engine.has_work
    assert ensemble.engine.runner.reader.branches == []
    run(ensemble.engine, [ask(ensemble, "next", LONG)])


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prefill_tokens is 0; allowed: a whole number from 1"):
        fake_ensemble(prefill_tokens=0)


def test_a_real_encoder_reads_whole_prompts(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32", slots=4, prefill_tokens=5)
    requests = mixed_requests(ensemble, 10, seed=8)
    judge = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    assert joining(ensemble, requests) == {c.request_id: said(c) for c in alone(judge, requests)}
