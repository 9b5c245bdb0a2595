"""Sweeps: shared = unshared, token for token, whatever the sampling and however few the slots."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from emorl_core.engine.sequences import Job
from emorl_core.engine.sweep import SweepResult, merge_rays, simplex_grid
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest, InvalidWeights, NonFinite, PromptTooLong
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from emorl_core.types import Completion, FinishReason, Sampling
from tests.core.conftest import PROMPTS

pytestmark = pytest.mark.both_shapes

TOKENS = 12
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 5},
    "filtered": {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "seed": 6},
    "repetition penalty": {"repetition_penalty": 1.5},
    "at least nine tokens": {"min_new_tokens": 9},
    "stop strings": {"stop": ("e", " i")},
    "mixed probabilities": {"combine": "probs"},
    "mixed probabilities, sampled": {"combine": "probs", "temperature": 0.7, "seed": 7},
}


def model_of(ensemble: Ensemble) -> FakeModel:
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    return model


def assert_like_alone(
    result: SweepResult, prompts: Sequence[str], weights: Sequence[Mapping[str, float]], judge: Ensemble, **options: Any
) -> None:
    """Every item of a sweep is what one `generate` call of its own gives."""
    assert len(result.items) == len(prompts) * len(weights)
    for item in result.items:
        alone = judge.generate(prompts[item.prompt_index], dict(weights[item.weights_index]), **options)
        assert item.token_ids == alone.token_ids
        assert (item.text, item.finish_reason, item.weights) == (alone.text, alone.finish_reason, alone.weights)


def vectors(objectives: Sequence[str], count: int, seed: int) -> list[dict[str, float]]:
    """Mixes of every kind: one-hot, two lanes, close neighbours, the bare base, all lanes."""
    draw = random.Random(seed)
    names = ("base", *objectives)
    found: list[dict[str, float]] = [{name: 1.0} for name in names]
    while len(found) < count:
        chosen = draw.sample(names, draw.randint(2, len(names)))
        found.append({name: draw.random() for name in chosen})
        if draw.random() < 0.5:  # a neighbour so close that they part late, if at all
            found.append({name: value * draw.uniform(0.98, 1.02) for name, value in found[-1].items()})
    draw.shuffle(found)
    return found[:count]


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_gives_what_separate_calls_give(way: str, plain_bundle: Path) -> None:
    judge = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    shared = Ensemble.load(plain_bundle, device="cpu", dtype="float32", slots=64)
    weights, prompts = vectors(judge.objectives, 11, seed=1), PROMPTS[:2]
    result = shared.sweep(prompts, weights, max_new_tokens=TOKENS, **WAYS[way])
    assert_like_alone(result, prompts, weights, judge, max_new_tokens=TOKENS, **WAYS[way])
    assert result.lane_row_steps < result.unshared_lane_row_steps
    assert all(2 <= len(result.distinct(p)) <= len(weights) for p in range(2)), "or sharing was not put to the test"


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
@pytest.mark.parametrize("way", ["greedy", "filtered", "stop strings"])
def test_branches_without_a_slot_wait_and_lose_nothing(way: str, slots: int, plain_bundle: Path) -> None:
    judge = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    narrow = Ensemble.load(plain_bundle, device="cpu", dtype="float32", slots=slots)
    weights, prompts = vectors(judge.objectives, 9, seed=2), PROMPTS[:3]
    expected = judge.sweep(prompts, weights, max_new_tokens=TOKENS, **WAYS[way])
    result = narrow.sweep(prompts, weights, max_new_tokens=TOKENS, **WAYS[way])
    assert [i.token_ids for i in result.items] == [i.token_ids for i in expected.items]
    assert [i.text for i in result.items] == [i.text for i in expected.items]
    assert max(len(expected.distinct(p)) for p in range(3)) > slots or slots == 7
    assert not narrow.engine.has_work
    assert len(narrow.engine.runner.seats) == 0


def test_slots_bound_the_lane_rows_in_memory() -> None:
    ensemble = fake_ensemble(slots=3)
    rows: list[int] = []
    model_of(ensemble).on_step = lambda prompts: rows.append(len(prompts))
    result = ensemble.sweep(list(PROMPTS), resolution=5)
    assert max(rows) <= 3 * len(ensemble.objectives)
    assert sum(len(result.distinct(p)) for p in range(len(PROMPTS))) > 3 * len(PROMPTS)


def test_every_kind_of_t5_forks_right(ensemble: Ensemble) -> None:
    """Ragged prompts and all lanes, on both kinds of T5 with adapters that differ in rank and layers."""
    weights = vectors(ensemble.objectives, 7, seed=3)
    result = ensemble.sweep(PROMPTS[:2], weights, max_new_tokens=TOKENS)
    assert_like_alone(result, PROMPTS[:2], weights, ensemble, max_new_tokens=TOKENS)


def test_weights_used_as_they_are_negative_ones_too(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    weights = [
        {"reflection": 2.0, "empathy": -0.5},
        {"reflection": -0.2, "fluency": 1.2},
        {"fluency": 3.0, "base": -1.0},
        {"empathy": 0.1},
    ]
    options = {"normalize": False, "max_new_tokens": TOKENS}
    assert_like_alone(
        ensemble.sweep(PROMPTS[:2], weights, **options),
        PROMPTS[:2],
        weights,
        ensemble,
        **options,
    )


def test_sampled_scale_is_an_inverse_temperature_and_not_merged(plain_bundle: Path) -> None:
    """Unnormalised multiples of one vector: one run under greedy, runs of their own when sampling."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    weights = [{"reflection": k * 1.0, "empathy": k * 3.0} for k in (1, 2, 4, 0.25)]
    greedy = ensemble.sweep(PROMPTS[0], weights, normalize=False, max_new_tokens=TOKENS)
    assert len(greedy.distinct(0)) == 1
    assert greedy.lane_row_steps == 2 * len(greedy.items[0].token_ids)
    assert greedy.unshared_lane_row_steps == 4 * greedy.lane_row_steps
    options = {"normalize": False, "max_new_tokens": TOKENS, "temperature": 1.5, "seed": 1}
    sampled = ensemble.sweep(PROMPTS[0], weights, **options)
    assert len(sampled.distinct(0)) > 1
    assert_like_alone(sampled, PROMPTS[:1], weights, ensemble, **options)


def test_equal_rays_are_one_request() -> None:
    same = [(1.0, 2.0), (0.5, 1.0), (3.0, 6.0), (0.1, 0.2), (2.0, 1.0), (-1.0, -2.0), (1.0, 2.0)]
    assert merge_rays(same, [Sampling()] * 7) == [0, 0, 0, 0, 4, 5, 0]
    for apart in (Sampling(temperature=1.0), Sampling(presence_penalty=0.5)):
        assert merge_rays(same, [apart] * 7) == [0, 1, 2, 3, 4, 5, 0]
    assert merge_rays(same, [Sampling()] * 7, "probs") == [0, 1, 2, 3, 4, 5, 0]
    drawn = [Sampling(temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    assert merge_rays([(0.0, 1.0)] * 4, [Sampling(), *drawn]) == [0, 1, 2, 1]


def test_a_ray_runs_once_and_answers_for_all_its_vectors() -> None:
    ensemble = fake_ensemble()
    weights = [{"reflection": 1}, {"empathy": 2, "fluency": 1}, {"reflection": 9}, {"fluency": 4, "empathy": 8}]
    plan = ensemble.sweep_plan(PROMPTS[:2], weights)
    assert plan.requests == 4
    assert [len(group) for group in plan.groups()] == [2, 2]
    result = ensemble.sweep(PROMPTS[:2], weights)
    assert [item.weights_index for item in result.of_prompt(1)] == [0, 1, 2, 3]
    assert result.distinct(1) == {result.of_prompt(1)[0].text: [0, 2], result.of_prompt(1)[1].text: [1, 3]}


def test_each_prompt_can_have_vectors_of_its_own() -> None:
    """What a search knows already is not generated again."""
    ensemble = fake_ensemble()
    full = ensemble.sweep(PROMPTS[:3], resolution=3)
    only = [[7, 2, 0, 2], [], range(10)]
    part = ensemble.sweep(PROMPTS[:3], resolution=3, only=only)
    wanted = [(p, i) for p, own in enumerate(only) for i in sorted(set(own))]
    assert [(item.prompt_index, item.weights_index) for item in part.items] == wanted
    assert all(item in full.items for item in part.items)
    assert part.lane_row_steps < full.lane_row_steps


def test_a_prompt_is_prefilled_once_per_objective() -> None:
    ensemble = fake_ensemble(slots=2)
    prefilled: Counter[tuple[int, ...]] = Counter()
    model_of(ensemble).on_prefill = prefilled.update
    ensemble.sweep(PROMPTS[:3], resolution=4)
    assert prefilled == {ensemble.encode(prompt): 3 for prompt in PROMPTS[:3]}


def test_counters_of_a_sweep_that_shares_everything() -> None:
    """Equal vectors cost one run; what a run costs is one lane row a lane and token."""
    ensemble = fake_ensemble()
    mix = {"reflection": 1.0, "empathy": 1.0}
    result = ensemble.sweep(PROMPTS[0], [mix] * 5)
    tokens = len(result.items[0].token_ids)
    assert result.lane_row_steps == 2 * tokens
    assert result.unshared_lane_row_steps == 5 * 2 * tokens


def test_counters_add_up_over_the_tree() -> None:
    """With slots for all, no row is computed twice: the cost is the number of distinct (prefix, lane) pairs."""
    ensemble = fake_ensemble(slots=64)
    result = ensemble.sweep(PROMPTS[:2], resolution=3)
    needed = {
        (item.prompt_index, item.token_ids[:length], name)
        for item in result.items
        for length in range(len(item.token_ids))
        for name, weight in item.weights.items()
        if weight
    }
    assert result.lane_row_steps == len(needed)


def test_items_are_told_as_they_end_each_once() -> None:
    ensemble = fake_ensemble(slots=2)
    told: list[tuple[int, int]] = []
    result = ensemble.sweep(
        PROMPTS[:3], resolution=2, on_item=lambda item: told.append((item.prompt_index, item.weights_index))
    )
    assert sorted(told) == [(item.prompt_index, item.weights_index) for item in result.items]
    assert told != sorted(told), "two slots finish some late prompts' items before early ones"


def test_a_sweep_shares_the_engine_with_other_requests(plain_bundle: Path) -> None:
    """A stream is half read when the sweep begins; both get what they would get alone."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32", slots=3)
    alone = ensemble.generate(PROMPTS[4], {"fluency": 1}, max_new_tokens=40)
    expected = ensemble.sweep(PROMPTS[:2], resolution=2, max_new_tokens=TOKENS)
    stream = ensemble.stream(PROMPTS[4], {"fluency": 1}, max_new_tokens=40)
    first = next(stream)
    result = ensemble.sweep(PROMPTS[:2], resolution=2, max_new_tokens=TOKENS)
    events = [first, *stream]
    assert [item.token_ids for item in result.items] == [item.token_ids for item in expected.items]
    assert tuple(event.token_id for event in events) == alone.token_ids


def test_one_seed_serves_all_and_is_reported(plain_bundle: Path) -> None:
    """Without one, a seed is drawn once for the whole sweep, also when the caller says `seed=None`."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    result = ensemble.sweep(PROMPTS[:2], resolution=2, temperature=1.0, seed=None, max_new_tokens=TOKENS)
    again = ensemble.sweep(PROMPTS[:2], resolution=2, temperature=1.0, seed=result.seed, max_new_tokens=TOKENS)
    assert [item.token_ids for item in result.items] == [item.token_ids for item in again.items]
    other = ensemble.sweep(PROMPTS[:2], resolution=2, temperature=1.0, seed=result.seed ^ 1, max_new_tokens=TOKENS)
    assert [item.token_ids for item in other.items] != [item.token_ids for item in again.items]


def test_a_step_that_fails_once_changes_no_text() -> None:
    """Mid-sweep, with forks waiting: the engine runs the branches apart and feeds the survivors again."""
    expected = fake_ensemble(slots=4).sweep(PROMPTS[:3], resolution=4)
    ensemble = fake_ensemble(slots=4)
    batches = 0

    def fail_now_and_then(prompts: list[tuple[int, ...]]) -> None:
        nonlocal batches
        batches += len(prompts) > 3  # more lane rows than one branch has
        if len(prompts) > 3 and batches in (2, 7, 8, 15):
            raise RuntimeError("injected")

    model_of(ensemble).on_step = fail_now_and_then
    result = ensemble.sweep(PROMPTS[:3], resolution=4)
    assert batches > 15
    assert [item.token_ids for item in result.items] == [item.token_ids for item in expected.items]


def test_a_prompt_that_fails_ends_the_sweep_and_leaves_the_engine_clean() -> None:
    ensemble = fake_ensemble(slots=4)
    model_of(ensemble).poisoned.add(ensemble.encode(PROMPTS[1]))
    with pytest.raises(NonFinite):
        ensemble.sweep(PROMPTS[:3], resolution=4)
    while ensemble.engine.has_work:  # what was cancelled leaves at the next steps
        ensemble.engine.step()
    assert len(ensemble.engine.runner.seats) == 0
    model_of(ensemble).poisoned.clear()
    assert len(ensemble.sweep(PROMPTS[1], resolution=4).items) == 15


def test_members_of_a_sweep_can_be_cancelled_one_by_one() -> None:
    ensemble = fake_ensemble(slots=2)
    expected = ensemble.sweep(PROMPTS[0], resolution=3)
    plan = ensemble.sweep_plan(PROMPTS[0], resolution=3)
    (group,) = plan.groups()
    ensemble.engine.add_group(group)
    gone = {group[0].request_id, group[4].request_id, group[9].request_id}
    done = {}
    while ensemble.engine.has_work:
        events = ensemble.engine.step()
        done.update({event.request_id: event for event in events})
        for request_id in gone:
            ensemble.engine.cancel(request_id)
    for request, item in zip(group, expected.items, strict=True):
        completion = done[request.request_id]
        if request.request_id in gone:
            assert completion.finish_reason == FinishReason.CANCELLED
        else:
            assert completion.token_ids == item.token_ids


def test_a_large_sweep_leaves_room_for_a_request_that_comes_later() -> None:
    """It once held every slot until its last branch had ended, since forked branches went before the whole queue."""
    ensemble, steps = fake_ensemble(slots=3, mean_length=200), 12
    options: dict[str, Any] = {"max_new_tokens": steps, "seed": 3}
    expected = fake_ensemble(mean_length=200).sweep(PROMPTS[:2], resolution=8, **options)
    plan = ensemble.sweep_plan(PROMPTS[:2], resolution=8, **options)
    job = Job()
    for group in plan.groups():
        ensemble.engine.add_group(group, job)
    for _ in range(steps + 2):
        for event in ensemble.engine.step():
            assert isinstance(event, Completion)
            plan.take(event)
    assert ensemble.engine.stats.waiting > 20, "a sweep that would hold the slots for long"
    names = [f"plain {i}" for i in range(4)]
    for name in names:
        ensemble.engine.add(ensemble.request("i drink", request_id=name, min_new_tokens=3, max_new_tokens=3))
    ended: dict[str, int] = {}
    step = 0
    while ensemble.engine.has_work:
        step += 1
        if ended.keys() >= {names[0]} and step % 3 == 0:  # and the sweep goes on while others keep coming
            ensemble.engine.add(ensemble.request("i drink", request_id=f"more {step}", max_new_tokens=3))
        for event in ensemble.engine.step():
            if isinstance(event, Completion) and event.request_id.startswith("sweep"):
                plan.take(event)
            elif isinstance(event, Completion):
                ended[event.request_id] = step
        if plan.done:
            break
    assert ended["plain 0"] <= steps + 3, "it waited for one branch of the sweep to end"
    assert max(ended[name] for name in names) <= 3 * steps
    assert plan.result().items == expected.items


def test_a_sweep_of_long_texts_gives_slots_back_to_plain_requests_and_ends_the_same() -> None:
    ensemble, steps = fake_ensemble(slots=3, mean_length=500), 60
    options: dict[str, Any] = {"max_new_tokens": steps, "seed": 3}
    expected = fake_ensemble(mean_length=500).sweep(PROMPTS[:2], resolution=5, **options)
    plan = ensemble.sweep_plan(PROMPTS[:2], resolution=5, **options)
    job = Job()
    for group in plan.groups():
        ensemble.engine.add_group(group, job)
    step = 0
    while ensemble.engine.has_work:
        for event in ensemble.engine.step():
            if isinstance(event, Completion) and event.request_id == "plain":
                assert step < steps - 5, "before the first text of the sweep had ended"
            elif isinstance(event, Completion):
                plan.take(event)
        step += 1
        if step == 20:
            assert ensemble.engine.stats.slots_used == 3
            ensemble.engine.add(ensemble.request("i drink", request_id="plain", min_new_tokens=9, max_new_tokens=9))
    assert plan.result().items == expected.items


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, InvalidRequest, "exactly one of weights and resolution"),
        ({"weights": [{"empathy": 1}], "resolution": 2}, InvalidRequest, "exactly one"),
        ({"weights": []}, InvalidRequest, "weights is empty"),
        ({"weights": {"empathy": 1}}, InvalidRequest, "a list"),
        ({"weights": [{"empathy": 1}, {"empaty": 1}]}, InvalidWeights, "vector 1: weights: unknown objective 'empaty'"),
        ({"weights": [{"empathy": 1}, {"empathy": 0}]}, InvalidWeights, "vector 1: weights: all are zero"),
        ({"weights": [{"empathy": 1}], "combine": "sum"}, InvalidRequest, "combine is 'sum'"),
        ({"resolution": 0}, InvalidRequest, "resolution is 0"),
        ({"resolution": 1000}, InvalidRequest, "501501 vectors"),
        ({"resolution": 2, "temperature": -1}, InvalidRequest, "temperature"),
        (
            {"weights": [{"empathy": 1}, {"empathy": -1, "fluency": 2}], "combine": "probs", "normalize": False},
            InvalidWeights,
            "weights.1: negative",
        ),
    ],
)
def test_bad_sweeps_are_refused_before_anything_runs(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    ensemble = fake_ensemble()
    with pytest.raises(error, match=says):
        ensemble.sweep(PROMPTS[0], **arguments)
    assert not ensemble.engine.has_work


def test_lists_that_do_not_fit_the_prompts_are_refused() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidRequest, match="only has 1 entries for 2 prompts"):
        ensemble.sweep(PROMPTS[:2], resolution=1, only=[[0]])
    with pytest.raises(InvalidRequest, match=r"only\.1 names vector 3"):
        ensemble.sweep(PROMPTS[:2], resolution=1, only=[[0], [3]])


def test_no_prompt_and_what_a_sweep_cannot_answer_are_refused() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidRequest, match="prompts is empty"):
        ensemble.sweep([], resolution=2)
    with pytest.raises(TypeError, match="attribution"):
        ensemble.sweep(PROMPTS[0], resolution=2, attribution=True)


@pytest.mark.parametrize("resolution", [0, -1, 2.5, True, "3", None, 100_001, 10**400])
def test_a_resolution_that_is_none_is_refused(resolution: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"resolution is .*; allowed: a whole number from 1 to 100000"):
        simplex_grid(["a", "b"], resolution)


@pytest.mark.parametrize(("objectives", "resolution"), [(3, 446), (50, 100_000), (1000, 3)])
def test_a_grid_is_counted_before_it_is_made(objectives: int, resolution: int) -> None:
    with pytest.raises(InvalidRequest, match="vectors; allowed: at most 100000") as caught:
        simplex_grid([f"o{i}" for i in range(objectives)], resolution)
    assert len(caught.value.message) < 150


def test_a_sweep_over_the_limit_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = fake_ensemble()
    monkeypatch.setattr(ensemble.tokenizer, "encode", lambda text: pytest.fail("tokenised"))
    for weights, resolution, param in (([{"empathy": 1}] * 5, None, "weights"), (None, 4, "resolution")):
        with pytest.raises(InvalidRequest, match=r"2 x 1?5 completions; allowed: up to 9 \(max_sweep\)") as caught:
            ensemble.sweep_plan(["a", "b"], weights, resolution=resolution, max_sweep=9)
        assert caught.value.param == param


def test_no_prompt_is_tokenised_before_all_are_short_enough_and_the_one_at_fault_is_named() -> None:
    ensemble = fake_ensemble(max_source_tokens=40)
    seen: list[str] = []
    encode = ensemble.tokenizer.encode_prompt
    ensemble.tokenizer.encode_prompt = lambda text, *around: (seen.append(text), encode(text, *around))[1]  # type: ignore[method-assign]
    with pytest.raises(PromptTooLong, match=r"^prompts\.1 has 1000 characters") as caught:
        ensemble.sweep(["so much", "y" * 1000, " "], resolution=1)
    assert (caught.value.param, seen) == ("prompts.1", [])
    with pytest.raises(InvalidRequest, match=r"^prompts\.1 is empty") as empty:
        ensemble.sweep(["so much", " "], resolution=1)
    assert empty.value.param == "prompts.1"
    with pytest.raises(PromptTooLong, match=r"^prompt has 1000 characters"):
        ensemble.sweep("y" * 1000, resolution=1)


def test_one_prompts_items_are_found_without_looking_at_all() -> None:
    looked = 0

    class Item:
        def __init__(self, prompt: int) -> None:
            self._prompt = prompt

        @property
        def prompt_index(self) -> int:
            nonlocal looked
            looked += 1
            return self._prompt

    items: Any = tuple(Item(prompt) for prompt in range(4096) if prompt != 7)
    result = SweepResult(items, 0, 0, 0)
    assert result.of_prompt(4095) == (items[-1],)
    assert result.of_prompt(0) == (items[0],)
    assert result.of_prompt(7) == ()
    assert looked < 100


@pytest.mark.parametrize(("objectives", "resolution", "size"), [(1, 4, 1), (2, 10, 11), (3, 10, 66), (4, 3, 20)])
def test_the_grid_covers_the_simplex_once(objectives: int, resolution: int, size: int) -> None:
    names = [f"o{i}" for i in range(objectives)]
    grid = simplex_grid(names, resolution)
    assert len({tuple(vector.values()) for vector in grid}) == len(grid) == size
    for vector in grid:
        assert sum(vector.values()) == pytest.approx(1.0)
        assert all((value * resolution) == pytest.approx(round(value * resolution)) for value in vector.values())
    for name in names:
        assert {other: float(other == name) for other in names} in grid
