"""The exact map of three weight vectors, against a dense grid of separate ones; and the grid that stands in for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emorl_core.engine.driver import Driver
from emorl_core.engine.polygons import depth, share
from emorl_core.engine.regions import MapCompletion, MapRequest, MapResult
from emorl_core.engine.sweep import compositions
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest, InvalidWeights, NonFinite
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from emorl_core.types import FinishReason, RegionFound, Sampling
from tests.core.conftest import PROMPTS
from tests.core.driving import alone, completions, drain, failures, said

pytestmark = pytest.mark.both_shapes

NEAR = 1e-6  # a grid point this close to a border may fall on either side of it
MIXED: list[dict[str, float]] = [
    {"reflection": 3, "fluency": 1},
    {"empathy": 2, "base": 1},
    {"fluency": 5, "reflection": 1},
]


def assert_covers(found: MapResult) -> None:
    assert found.exact
    assert sum(share(region.polygon) for region in found.regions) == pytest.approx(1.0, abs=1e-9)
    assert len({region.token_ids for region in found.regions}) == len(found.regions)
    sizes = [share(region.polygon) for region in found.regions]
    assert sizes == sorted(sizes, reverse=True)
    assert all(not region.points for region in found.regions)


def between(corners: Sequence[Mapping[str, float]], place: Sequence[float]) -> dict[str, float]:
    names = dict.fromkeys(name for corner in corners for name in corner)
    return {name: sum(u * corner.get(name, 0.0) for u, corner in zip(place, corners, strict=True)) for name in names}


def assert_like_grid(found: MapResult, ensemble: Ensemble, prompt: str, steps: int, **options: Any) -> int:
    """Compare at every grid point that is not too near a border; returns how many texts the grid saw."""
    places = [tuple(count / steps for count in counts) for counts in compositions(steps, 3)]
    weights = [between(found.corners, place) for place in places]
    result = ensemble.sweep(prompt, weights, normalize=False, **options)
    wrong = []
    for place, item in zip(places, result.items, strict=True):
        region = found.at(place)
        if region.token_ids == item.token_ids:
            assert (region.text, region.finish_reason) == (item.text, item.finish_reason)
        elif depth(region.polygon, place) > NEAR:
            wrong.append((place, depth(region.polygon, place)))
    assert not wrong
    return len({item.token_ids for item in result.items})


def test_the_map_is_what_a_dense_grid_sees() -> None:
    ensemble = fake_ensemble()
    for corners, prompt in ((None, PROMPTS[0]), (MIXED, PROMPTS[1])):
        found = ensemble.sweep_map(prompt, corners, max_new_tokens=6)
        assert_covers(found)
        assert assert_like_grid(found, ensemble, prompt, 40, max_new_tokens=6) > 5


@pytest.mark.slow
def test_the_map_of_a_t5_is_what_a_grid_of_5151_points_sees(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    found = ensemble.sweep_map(PROMPTS[0], max_new_tokens=6)
    assert_covers(found)
    assert assert_like_grid(found, ensemble, PROMPTS[0], 100, max_new_tokens=6) > 5


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 7, "min_new_tokens": 6}, {"max_new_tokens": 7, "stop": ("e", " i")}],
    ids=["minimum", "stop strings"],
)
def test_sampling_limits_hold_on_the_map_too(options: dict[str, Any]) -> None:
    ensemble = fake_ensemble(mean_length=3)
    found = ensemble.sweep_map(PROMPTS[0], **options)
    assert_covers(found)
    assert assert_like_grid(found, ensemble, PROMPTS[0], 20, **options) > 1


def test_weights_as_they_are_may_be_negative() -> None:
    ensemble = fake_ensemble()
    corners = [{"reflection": 2.0, "base": -0.5}, {"fluency": 1.5, "empathy": -0.4}, {"empathy": 0.7}]
    found = ensemble.sweep_map(PROMPTS[0], corners, normalize=False, max_new_tokens=6)
    assert found.corners[0] == {"base": -0.5, "reflection": 2.0, "empathy": 0.0, "fluency": 0.0}
    assert_covers(found)
    assert assert_like_grid(found, ensemble, PROMPTS[0], 30, max_new_tokens=6) > 1


def test_its_edges_are_the_exact_lines() -> None:
    ensemble = fake_ensemble()
    found = ensemble.sweep_map(PROMPTS[0], max_new_tokens=8)
    line = ensemble.sweep_line(PROMPTS[0], {"reflection": 1}, {"empathy": 1}, max_new_tokens=8)
    for interval in line.intervals:
        t = (interval.start + interval.end) / 2
        assert found.at((1 - t, t, 0.0)).token_ids == interval.token_ids


def test_corners_that_repeat_give_strips_and_corners_that_are_one_give_one_text() -> None:
    ensemble = fake_ensemble()
    one, other = {"reflection": 1.0}, {"empathy": 1.0}
    strips = ensemble.sweep_map(PROMPTS[0], [one, one, other], max_new_tokens=8)
    assert_covers(strips)
    line = ensemble.sweep_line(PROMPTS[0], one, other, max_new_tokens=8)
    assert {region.token_ids for region in strips.regions} == {interval.token_ids for interval in line.intervals}
    (only,) = ensemble.sweep_map(PROMPTS[0], [one, one, {"reflection": 7.0}], max_new_tokens=8).regions
    assert share(only.polygon) == 1.0


@pytest.mark.parametrize("slots", [1, 5])
def test_fewer_slots_than_regions_change_nothing(slots: int) -> None:
    expected = fake_ensemble(slots=64).sweep_map(PROMPTS[0], max_new_tokens=4)
    found = fake_ensemble(slots=slots).sweep_map(PROMPTS[0], max_new_tokens=4)
    assert len(found.regions) > slots
    assert {(r.polygon, r.text) for r in found.regions} == {(r.polygon, r.text) for r in expected.regions}


def test_recursion_stops_at_the_stated_width() -> None:
    ensemble = fake_ensemble()
    fine = ensemble.sweep_map(PROMPTS[0], max_new_tokens=6)
    coarse = ensemble.sweep_map(PROMPTS[0], max_new_tokens=6, min_width=0.3)
    assert_covers(coarse)
    assert len(coarse.regions) < len(fine.regions)


# -- bounds ----------------------------------------------------------------------------------------------------------


def asked(ensemble: Ensemble, **changes: Any) -> MapRequest:
    made = ensemble.map_request(PROMPTS[0], max_new_tokens=8, resolution=10, request_id="map")
    return replace(made, **changes)


def assert_is_the_grid(found: Sequence[Any], ensemble: Ensemble) -> None:
    places = [tuple(count / 10 for count in counts) for counts in compositions(10, 3)]
    weights = [dict(zip(ensemble.objectives, place, strict=True)) for place in places]
    items = ensemble.sweep(PROMPTS[0], weights, max_new_tokens=8).items
    expected = {place: (item.token_ids, item.text) for place, item in zip(places, items, strict=True)}
    assert {point: (each.token_ids, each.text) for each in found for point in each.points} == expected
    assert sum(len(each.points) for each in found) == len(places)
    assert not any(each.polygon for each in found)


def test_with_more_regions_than_allowed_it_is_the_grid_and_says_why() -> None:
    ensemble = fake_ensemble(slots=3)
    found = Driver(ensemble.engine).map(asked(ensemble, most=6, most_named="a setting"))
    assert (found.exact, found.why_not) == (False, "there are more than 6 regions (a setting)")
    assert_is_the_grid(found.regions, ensemble)
    assert len(ensemble.engine.runner.seats) == ensemble.engine.stats.slots_used == ensemble.engine.stats.waiting == 0
    whole = Driver(ensemble.engine).map(asked(ensemble, most=1000))
    assert whole.exact
    assert found.lane_row_steps > 0


def test_a_map_that_takes_too_long_is_the_grid_and_says_why() -> None:
    ensemble = fake_ensemble(step_delay_s=0.01)
    found = Driver(ensemble.engine).map(asked(ensemble, time_limit_s=0.02, time_limit_named="limit_s"))
    assert found.why_not == "it took more than 0.02 seconds (limit_s)"
    assert_is_the_grid(found.regions, fake_ensemble())


def test_regions_told_before_the_grid_have_polygons_and_those_after_it_points() -> None:
    ensemble = fake_ensemble(slots=2, mean_length=3)
    ensemble.engine.add(asked(ensemble, most=40))
    events = drain(ensemble.engine)
    (done,) = completions(events).values()
    assert isinstance(done, MapCompletion)
    told = [event.region for event in events if isinstance(event, RegionFound)]
    kinds = [bool(region.points) for region in told]
    assert kinds == sorted(kinds), "the grid comes last"
    assert {id(region) for region in told if region.points} == {id(region) for region in done.regions}
    assert not kinds[0]


def test_cancelling_ends_all_branches_with_one_completion() -> None:
    for changes in ({}, {"most": 2}):
        ensemble = fake_ensemble(slots=3)
        other = ensemble.request(PROMPTS[1], seed=1, request_id="other")
        ensemble.engine.add(asked(ensemble, **changes))
        ensemble.engine.add(other)
        events = [event for _ in range(5) for event in ensemble.engine.step()]
        assert ensemble.engine.stats.slots_used > 1
        ensemble.engine.cancel("map")
        events += drain(ensemble.engine)
        ended = completions(events)
        done = ended.pop("map")
        assert isinstance(done, MapCompletion)
        assert (done.finish_reason, done.regions) == (FinishReason.CANCELLED, ())
        assert said(ended["other"]) == said(alone(fake_ensemble(), [other])[0])
        assert len(ensemble.engine.runner.seats) == ensemble.engine.stats.waiting == 0


def test_regions_take_no_more_slots_than_they_may() -> None:
    ensemble = fake_ensemble(slots=6, mean_length=40)
    ensemble.engine.add(asked(ensemble, most_slots=2))
    most = 0

    def before_step(step: int) -> None:
        nonlocal most
        most = max(most, len(ensemble.engine.scheduler.running))
        if step == 5:
            ensemble.engine.add(ensemble.request(PROMPTS[1], seed=1, request_id="late", max_new_tokens=3))

    ended = list(completions(drain(ensemble.engine, before_step)))
    assert most == 3
    assert ended == ["late", "map"]


@pytest.mark.parametrize("fails_at", [3, 7])
def test_a_step_that_fails_once_changes_no_region(fails_at: int) -> None:
    expected = fake_ensemble(slots=4).sweep_map(PROMPTS[0], max_new_tokens=6)
    ensemble, calls = fake_ensemble(slots=4), 0
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)

    def hook(prompts: list[tuple[int, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise RuntimeError

    model.on_step = hook
    found = ensemble.sweep_map(PROMPTS[0], max_new_tokens=6)
    assert {(r.polygon, r.text) for r in found.regions} == {(r.polygon, r.text) for r in expected.regions}
    assert ensemble.engine.faults == 1


def test_what_the_model_cannot_compute_is_an_error() -> None:
    ensemble = fake_ensemble()
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    model.poisoned.add(ensemble.encode(PROMPTS[0]))
    with pytest.raises(NonFinite):
        ensemble.sweep_map(PROMPTS[0])
    ensemble.engine.add(asked(ensemble))
    assert isinstance(failures(drain(ensemble.engine))["map"].error, NonFinite)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_bad_maps_are_refused() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidRequest, match="corners is a list of 2 weight vectors; allowed: a list of exactly 3"):
        ensemble.sweep_map(PROMPTS[0], MIXED[:2])
    with pytest.raises(InvalidRequest, match="corners is a list of 4 weight vectors"):
        ensemble.sweep_map(PROMPTS[0], [*MIXED, MIXED[0]])
    with pytest.raises(InvalidWeights, match=r"corners.1: .*unknown objective") as info:
        ensemble.sweep_map(PROMPTS[0], [MIXED[0], {"empaty": 1}, MIXED[2]])
    assert info.value.param == "corners.1.empaty"
    with pytest.raises(InvalidRequest, match="min_width is 0"):
        ensemble.sweep_map(PROMPTS[0], min_width=0)
    with pytest.raises(InvalidRequest, match="resolution is 0"):
        ensemble.sweep_map(PROMPTS[0], resolution=0)
    with pytest.raises(InvalidRequest, match=r"a grid of 5151 points; allowed: up to 5000 \(max_sweep\)"):
        ensemble.sweep_map(PROMPTS[0], resolution=100, max_points=5000)


@pytest.mark.parametrize("objectives", [("empathy", "fluency"), ("a", "b", "c", "d")])
def test_without_corners_a_bundle_needs_three_objectives(objectives: tuple[str, ...]) -> None:
    ensemble = fake_ensemble(objectives)
    says = rf"this bundle has {len(objectives)} objectives \({', '.join(objectives)}\); allowed then: exactly 3"
    with pytest.raises(InvalidRequest, match=says):
        ensemble.sweep_map(PROMPTS[0])
    corners = [{"base": 1.0}, {objectives[0]: 1.0}, {objectives[1]: 1.0}]
    assert_covers(ensemble.sweep_map(PROMPTS[0], corners, max_new_tokens=3))


def test_only_plain_greedy_decoding_of_mixed_hidden_states_has_exact_maps() -> None:
    ensemble = fake_ensemble()
    for options in ({"temperature": 1.0}, {"repetition_penalty": 1.2}):
        with pytest.raises(InvalidRequest, match="maps are exact for greedy decoding"):
            ensemble.engine.add(asked(ensemble, sampling=Sampling(seed=0, **options)))
    for combine in ("probs", "weights"):
        with pytest.raises(InvalidRequest, match=f"combine is '{combine}'; allowed for maps: hidden"):
            ensemble.engine.add(asked(ensemble, combine=combine))
