"""The exact line between two weight vectors, against a dense grid of separate weight vectors."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest, InvalidWeights, NonFinite
from emorl_core.fake import fake_ensemble
from emorl_core.line import LineResult
from emorl_core.models.fake import FakeModel
from emorl_core.sweep import SweepItem
from emorl_core.types import FinishReason
from tests.core.conftest import PROMPTS

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


def assert_covers(line: LineResult) -> None:
    intervals = line.intervals
    assert intervals[0].start == 0.0
    assert intervals[-1].end == 1.0
    assert all(interval.start < interval.end for interval in intervals)
    assert all(a.end == b.start and a.token_ids != b.token_ids for a, b in itertools.pairwise(intervals))
    assert line.breaks == tuple(interval.end for interval in intervals[:-1])


def assert_like_grid(line: LineResult, ensemble: Ensemble, prompt: str, points: int, **options: Any) -> int:
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
    model = ensemble.engine.runner.model
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
    model = ensemble.engine.runner.model
    assert isinstance(model, FakeModel)
    model.poisoned.add(ensemble.encode(PROMPTS[0]))
    with pytest.raises(NonFinite):
        ensemble.sweep_line(PROMPTS[0], *ENDS[0])


def test_bad_lines_are_refused() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidWeights, match="unknown objective"):
        ensemble.sweep_line(PROMPTS[0], {"empaty": 1}, {"empathy": 1})
    with pytest.raises(InvalidRequest, match="min_width is 0"):
        ensemble.sweep_line(PROMPTS[0], *ENDS[0], min_width=0)
    with pytest.raises(InvalidRequest, match="min_width is nan"):
        ensemble.sweep_line(PROMPTS[0], *ENDS[0], min_width=float("nan"))
