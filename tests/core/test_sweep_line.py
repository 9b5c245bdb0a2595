"""The exact line between two weight vectors, against a dense grid of separate weight vectors."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emorl_core.engine.driver import Driver
from emorl_core.engine.segments import SegmentsCompletion, SegmentsRequest, SegmentsResult
from emorl_core.engine.sweep import SweepItem
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest, InvalidWeights, NonFinite
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from emorl_core.types import FinishReason, Sampling
from tests.core.conftest import PROMPTS
from tests.core.driving import alone, completions, drain, failures, said

pytestmark = pytest.mark.both_shapes

POINTS = 2001
NEAR = 1e-6  # a grid point this close to a break may fall on either side of it
ENDS: list[tuple[dict[str, float], dict[str, float]]] = [
    ({"reflection": 1}, {"empathy": 1}),
    ({"reflection": 3, "fluency": 1}, {"empathy": 2, "fluency": 5}),
    ({"base": 1}, {"reflection": 1, "empathy": 1, "fluency": 1}),
    ({"fluency": 1}, {"fluency": 1, "base": 9}),
]


def prompts(count: int) -> list[str]:
    draw = random.Random(0)
    words = "i feel tired angry alone mother work sleep nobody listens drink money school again never doctor".split()
    return [" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(count)]


def between(start: Mapping[str, float], end: Mapping[str, float], t: float) -> dict[str, float]:
    names = sorted({*start, *end})
    return {name: (1 - t) * start.get(name, 0.0) + t * end.get(name, 0.0) for name in names}


def assert_covers(line: SegmentsResult) -> None:
    intervals = line.intervals
    assert intervals[0].start == 0.0
    assert intervals[-1].end == 1.0
    assert all(interval.start < interval.end for interval in intervals)
    assert all(a.end == b.start and a.token_ids != b.token_ids for a, b in itertools.pairwise(intervals))
    assert line.breaks == tuple(interval.end for interval in intervals[:-1])


def assert_like_grid(line: SegmentsResult, ensemble: Ensemble, prompt: str, points: int, **options: Any) -> int:
    """Compare at every grid point that is not too near a break; returns how many texts the grid saw."""
    ts = [i / (points - 1) for i in range(points)]
    weights = [between(line.from_weights, line.to_weights, t) for t in ts]
    result = ensemble.sweep(prompt, weights, normalize=False, **options)
    wrong: list[tuple[float, SweepItem]] = []
    for t, item in zip(ts, result.items, strict=True):
        found = line.at(t)
        if found.token_ids == item.token_ids:
            assert (found.text, found.finish_reason) == (item.text, item.finish_reason)
        elif min(abs(t - place) for place in line.breaks) > NEAR:
            wrong.append((t, item))
    assert not wrong, [(t, line.at(t).start, line.at(t).end) for t, _ in wrong]
    return len({item.token_ids for item in result.items})


@pytest.mark.slow
def test_the_line_is_what_a_dense_grid_of_2001_points_sees_on_20_prompts(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    seen = 0
    for i, prompt in enumerate(prompts(20)):
        start, end = ENDS[i % len(ENDS)]
        line = ensemble.sweep_line(prompt, start, end, max_new_tokens=8)
        assert_covers(line)
        seen += assert_like_grid(line, ensemble, prompt, POINTS, max_new_tokens=8)
    assert seen > 20 * 4, "lines with hardly a break prove little"


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 5}, {"max_new_tokens": 14, "min_new_tokens": 10}, {"max_new_tokens": 14, "stop": ("e", " i")}],
    ids=["short", "minimum", "stop strings"],
)
def test_sampling_limits_hold_on_the_line_too(options: dict[str, Any], plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    for prompt in PROMPTS[:2]:
        line = ensemble.sweep_line(prompt, *ENDS[0], **options)
        assert_covers(line)
        assert assert_like_grid(line, ensemble, prompt, 101, **options) > 1


def test_every_kind_of_t5_has_exact_lines(ensemble: Ensemble) -> None:
    for (start, end), prompt in zip(ENDS[1:3], PROMPTS, strict=False):
        line = ensemble.sweep_line(prompt, start, end, max_new_tokens=8)
        assert_covers(line)
        assert assert_like_grid(line, ensemble, prompt, 101, max_new_tokens=8) > 1


def test_weights_as_they_are_may_be_negative(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    ends = ({"reflection": 2.0, "base": -0.5}, {"fluency": 1.5, "empathy": -0.4})
    line = ensemble.sweep_line(PROMPTS[0], *ends, normalize=False, max_new_tokens=8)
    assert line.from_weights == {"base": -0.5, "reflection": 2.0, "empathy": 0.0, "fluency": 0.0}
    assert_covers(line)
    assert assert_like_grid(line, ensemble, PROMPTS[0], 301, max_new_tokens=8) > 1


def test_texts_at_the_ends_are_those_of_generate() -> None:
    ensemble = fake_ensemble()
    for prompt in PROMPTS[:2]:
        line = ensemble.sweep_line(prompt, {"reflection": 1}, {"empathy": 1, "fluency": 1})
        for interval, weights in (
            (line.intervals[0], {"reflection": 1}),
            (line.intervals[-1], {"empathy": 1, "fluency": 1}),
        ):
            alone = ensemble.generate(prompt, weights)
            assert (interval.text, interval.token_ids) == (alone.text, alone.token_ids)
            assert interval.finish_reason == alone.finish_reason


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_fewer_slots_than_intervals_change_nothing(slots: int) -> None:
    wide, narrow = fake_ensemble(slots=64), fake_ensemble(slots=slots)
    expected = wide.sweep_line(PROMPTS[0], *ENDS[1])
    line = narrow.sweep_line(PROMPTS[0], *ENDS[1])
    assert len(line.intervals) > slots
    assert [(i.start, i.end, i.text) for i in line.intervals] == [(i.start, i.end, i.text) for i in expected.intervals]
    assert line.lane_row_steps >= expected.lane_row_steps


def test_slots_bound_the_rows_of_a_line() -> None:
    ensemble = fake_ensemble(slots=2)
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    rows: list[int] = []
    model.on_step = lambda running: rows.append(len(running))
    ensemble.sweep_line(PROMPTS[1], *ENDS[1])
    assert max(rows) == 2 * 3


def test_a_line_between_multiples_of_one_vector_is_one_interval() -> None:
    ensemble = fake_ensemble()
    line = ensemble.sweep_line(PROMPTS[0], {"reflection": 1, "empathy": 1}, {"reflection": 2, "empathy": 2})
    (only,) = line.intervals
    assert (only.start, only.end, line.breaks) == (0.0, 1.0, ())
    assert line.at(0.0) is line.at(1.0) is only


def test_recursion_stops_at_the_stated_width() -> None:
    """No interval narrower than asked for is divided; the coarse line still covers everything."""
    ensemble = fake_ensemble()
    fine = ensemble.sweep_line(PROMPTS[0], *ENDS[1])
    coarse = ensemble.sweep_line(PROMPTS[0], *ENDS[1], min_width=0.3)
    assert_covers(coarse)
    assert len(coarse.intervals) < len(fine.intervals)
    assert coarse.min_width == 0.3


def test_a_line_leaves_requests_in_the_engine_alone() -> None:
    ensemble = fake_ensemble(slots=2)
    expected = ensemble.generate(PROMPTS[2], {"fluency": 1})
    stream = ensemble.stream(PROMPTS[2], {"fluency": 1})
    first = next(stream)
    ensemble.sweep_line(PROMPTS[0], *ENDS[0])
    assert "".join(event.text for event in [first, *stream]) == expected.text


def test_a_line_ends_for_the_reasons_that_generate_knows() -> None:
    line = fake_ensemble(mean_length=2).sweep_line(PROMPTS[0], *ENDS[0], max_new_tokens=9)
    assert {interval.finish_reason for interval in line.intervals} == {FinishReason.STOP, FinishReason.LENGTH}


def test_what_the_model_cannot_compute_is_an_error() -> None:
    ensemble = fake_ensemble()
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    model.poisoned.add(ensemble.encode(PROMPTS[0]))
    with pytest.raises(NonFinite):
        ensemble.sweep_line(PROMPTS[0], *ENDS[0])


def test_bad_lines_are_refused() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidWeights, match=r"from_weights: .*unknown objective"):
        ensemble.sweep_line(PROMPTS[0], {"empaty": 1}, {"empathy": 1})
    with pytest.raises(InvalidWeights, match=r"to_weights: .*unknown objective"):
        ensemble.sweep_line(PROMPTS[0], {"empathy": 1}, {"empaty": 1})
    with pytest.raises(InvalidRequest, match="min_width is 0"):
        ensemble.sweep_line(PROMPTS[0], *ENDS[0], min_width=0)
    with pytest.raises(InvalidRequest, match="min_width is nan"):
        ensemble.sweep_line(PROMPTS[0], *ENDS[0], min_width=float("nan"))


def segments(ensemble: Ensemble, **changes: Any) -> SegmentsRequest:
    """What `sweep_line` gives the engine, with other limits."""
    first, last = (ensemble.request(PROMPTS[0], weights=each, seed=0) for each in ENDS[0])
    made = SegmentsRequest(
        "line", first.prompt_ids, first.weights, first.sampling, stream=False, others=(last.weights,)
    )
    return replace(made, **changes)


def test_a_width_that_no_number_has_ends_all_the_same() -> None:
    """Below the spacing of floats there is nothing left to divide."""
    ensemble = fake_ensemble()
    asked = segments(ensemble, min_width=1e-300, sampling=Sampling(max_new_tokens=6, seed=0))  # beyond `check_width`
    fine = Driver(ensemble.engine).segments(asked)
    assert_covers(fine)
    usual = ensemble.sweep_line(PROMPTS[0], *ENDS[0], max_new_tokens=6)
    assert {i.token_ids for i in usual.intervals} <= {i.token_ids for i in fine.intervals}


def test_more_intervals_than_allowed_end_the_request_and_nobody_else() -> None:
    ensemble = fake_ensemble()
    other = ensemble.request(PROMPTS[1], seed=1, request_id="other")
    ensemble.engine.add(other)
    ensemble.engine.add(segments(ensemble, most=3, most_named="limit"))
    events = drain(ensemble.engine)
    (failure,) = failures(events).values()
    assert "more than 3 intervals" in failure.error.message
    assert "(limit)" in failure.error.message
    (done,) = completions(events).values()
    assert said(done) == said(alone(fake_ensemble(), [other])[0])
    assert len(ensemble.engine.runner.seats) == ensemble.engine.stats.slots_used == ensemble.engine.stats.waiting == 0


def test_a_request_that_takes_too_long_ends_with_an_error() -> None:
    ensemble = fake_ensemble(step_delay_s=0.01)
    ensemble.engine.add(segments(ensemble, time_limit_s=0.02, time_limit_named="limit_s"))
    (failure,) = failures(drain(ensemble.engine)).values()
    assert "took more than 0.02 seconds (limit_s)" in failure.error.message
    assert len(ensemble.engine.runner.seats) == ensemble.engine.stats.slots_used == ensemble.engine.stats.waiting == 0


def test_cancelling_ends_all_branches_with_one_completion() -> None:
    ensemble = fake_ensemble(slots=3)
    ensemble.engine.add(segments(ensemble))
    events = [event for _ in range(4) for event in ensemble.engine.step()]
    assert ensemble.engine.stats.running == 1, "one request, however many branches"
    assert ensemble.engine.stats.slots_used > 1
    ensemble.engine.cancel("line")
    events += drain(ensemble.engine)
    (done,) = completions(events).values()
    assert isinstance(done, SegmentsCompletion)
    assert (done.finish_reason, done.intervals) == (FinishReason.CANCELLED, ())
    assert len(ensemble.engine.runner.seats) == ensemble.engine.stats.waiting == 0


def test_intervals_take_no_more_slots_than_they_may_and_leave_the_rest_to_others() -> None:
    ensemble, sampling = fake_ensemble(slots=6, mean_length=40), Sampling(max_new_tokens=10, seed=0)
    ensemble.engine.add(segments(ensemble, most_slots=2, sampling=sampling))
    ensemble.engine.add(segments(ensemble, most_slots=2, sampling=sampling, request_id="second"))
    most = 0

    def before_step(step: int) -> None:
        nonlocal most
        most = max(most, len(ensemble.engine.scheduler.running))
        if step == 5:
            ensemble.engine.add(ensemble.request(PROMPTS[1], seed=1, request_id="late", max_new_tokens=3))

    events = drain(ensemble.engine, before_step)
    assert most == 5, "two for each, and the plain request"
    ended = list(completions(events))
    assert set(ended) == {"line", "second", "late"}
    assert ended[0] == "late", "it waits for neither"


@pytest.mark.parametrize("fails_at", [3, 4, 7])
def test_a_step_that_fails_once_changes_no_interval(fails_at: int) -> None:
    expected = fake_ensemble(slots=4).sweep_line(PROMPTS[0], *ENDS[0], max_new_tokens=8)
    ensemble, calls = fake_ensemble(slots=4), 0
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise RuntimeError

    model.on_step = hook
    assert ensemble.sweep_line(PROMPTS[0], *ENDS[0], max_new_tokens=8).intervals == expected.intervals
    assert ensemble.engine.faults == 1


def test_only_plain_greedy_decoding_has_exact_segments() -> None:
    ensemble = fake_ensemble()
    for options in ({"temperature": 1.0}, {"repetition_penalty": 1.2}):
        with pytest.raises(InvalidRequest, match="greedy decoding"):
            ensemble.engine.add(segments(ensemble, sampling=Sampling(seed=0, **options)))
