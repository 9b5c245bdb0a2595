"""The decoding step in buckets of static shape, with a stand-in for the capture: same tokens as the plain step.

Everything but CUDA's own part runs here; tests/gpu/test_graphs.py has that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import Store
from emorl_core.ensemble import Ensemble
from emorl_core.errors import NonFinite, UnsupportedModel
from emorl_core.models.graphs import graph_rows, graph_tokens
from emorl_core.models.t5.graphs import GraphedStep
from emorl_core.models.t5.model import T5
from emorl_core.types import Completion
from tests.core.conftest import PROMPTS
from tests.core.driving import (
    alone,
    completions,
    drain,
    failures,
    joining,
    mixed_requests,
    poison,
    prefilled,
    rows_of,
    run,
    said,
)

LONG = " ".join(["you feel tired of being alone and nobody listens at home"] * 4)  # past the first capacity for sources


class Recorder:
    """Captures nothing: a replay calls the function again. Like a graph, it knows only the tensors it was recorded
    with, and its result is overwritten by the next replay."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        result = function().clone()

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(function())

        return replay


def model_of(ensemble: Ensemble) -> T5:
    model = ensemble.engine.model
    assert isinstance(model, T5)
    return model


def graphs_of(ensemble: Ensemble) -> GraphedStep:
    step = model_of(ensemble)._fast
    assert isinstance(step, GraphedStep)
    return step


def graphed(folder: Path, *, slots: int = 16, most: int = 64) -> tuple[Ensemble, Recorder]:
    """An ensemble that decodes through buckets; what its warm-up captured is not counted."""
    ensemble, recorder = Ensemble.load(folder, device="cpu", dtype="float32", slots=slots), Recorder()
    model = model_of(ensemble)
    model._fast = GraphedStep(model, capture=recorder, most=most)
    ensemble.engine.switch(model)
    assert (recorder.captures, len(model._fast._buckets)) == (1, 0)
    recorder.captures = recorder.replays = 0
    return ensemble, recorder


def plain(folder: Path, **options: Any) -> Ensemble:
    return Ensemble.load(folder, device="cpu", dtype="float32", **options)


def texts(done: Iterable[Completion]) -> dict[str, tuple[object, ...]]:
    return {completion.request_id: said(completion) for completion in done}


def test_rows_are_rounded_to_few_numbers() -> None:
    assert [graph_rows(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 57, 64, 65, 96, 97, 129)] == [
        1, 2, 4, 4, 8, 8, 16, 16, 24, 64, 64, 96, 96, 128, 160
    ]  # fmt: skip
    rounded = [graph_rows(n) for n in range(1, 1000)]
    assert rounded == sorted(rounded)
    assert all(n <= r == graph_rows(r) for n, r in enumerate(rounded, 1))


def test_tokens_are_rounded_to_powers_of_two_within_the_capacity() -> None:
    assert [graph_tokens(n, 10**6) for n in (1, 16, 17, 32, 33, 64, 65, 500, 513)] == [
        16,
        16,
        32,
        32,
        64,
        64,
        128,
        512,
        1024,
    ]
    for capacity in (33, 65, 129, 257):
        for tokens in range(1, capacity):
            assert tokens <= graph_tokens(tokens, capacity) <= capacity - 1


def test_rows_can_be_reserved_before_they_come() -> None:
    own, crossed = (Store(2, 3, 4, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    cache = KVCache(own, crossed)
    kv = torch.randn(2, 2, 3, 40, 4, generator=torch.Generator().manual_seed(0))
    cache.insert(Memory(kv))
    before = cache.nbytes
    cache.reserve_rows(4)
    assert cache.nbytes == before, "there are four from the start"
    cache.reserve_rows(9)
    own, cross = cache.own.layers, cache.cross.layers
    assert {layer.shape[1] for layer in (*own, *cross)} == {16}
    assert (cache.count, cache.nbytes) == (1, 4 * before)
    assert all(torch.equal(layer[:, 0, :, :40], kv[:, i]) for i, layer in enumerate(cross))
    for _ in range(15):
        cache.insert(Memory(kv))
    assert cache.nbytes == 4 * before, "the reserved rows are used"


def test_ragged_batches_of_one_to_twenty_get_the_tokens_of_the_plain_step(bundle: Path) -> None:
    """Different lanes, prompts and lengths, greedy and sampled, joining and leaving; results by both kinds of T5."""
    (ensemble, recorder), judge = graphed(bundle, slots=20), plain(bundle, slots=20)
    for count in (*range(1, 9), 13, 20):
        requests = mixed_requests(judge, count, seed=count)
        assert joining(ensemble, requests) == joining(judge, requests), count
    assert ensemble.engine.faults == 0, ensemble.engine.last_fault
    assert recorder.replays > 100, "or graphs were not put to the test"


def test_every_place_of_a_batch_gives_the_same_hidden_states(plain_bundle: Path) -> None:
    """Spare rows and padded sizes change nothing beyond rounding: 1 to 20 rows, step by step."""
    ensemble, _ = graphed(plain_bundle)
    judge = model_of(plain(plain_bundle))
    draw = random.Random(0)
    for count in range(1, 21):
        prompts = [[*(draw.randint(3, 60) for _ in range(draw.randint(1, 40))), 1] for _ in range(count)]
        lanes = torch.tensor([draw.randint(0, 3) for _ in range(count)])
        rows = rows_of(judge, lanes)
        memories = prefilled(judge, prompts, lanes.tolist())
        caches = judge.new_cache(), judge.new_cache()
        for memory in memories:
            for cache in caches:
                cache.insert(memory)
        for _ in range(20):
            tokens = torch.tensor([[draw.randint(3, 60)] for _ in range(count)])
            hidden = model_of(ensemble).step(tokens, rows, caches[0])
            assert hidden.shape == (count, 1, 32)
            torch.testing.assert_close(hidden, judge.step(tokens, rows, caches[1]), atol=1e-4, rtol=1e-4)
        assert caches[0].lengths == caches[1].lengths == [20] * count


@pytest.mark.parametrize("way", [{}, {"temperature": 0.9, "seed": 5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("slots", [3, 32])
def test_a_sweep_forks_right(way: dict[str, Any], slots: int, bundle: Path) -> None:
    """Also with forks that wait for a slot and are fed their tokens again in a cache of their own."""
    (ensemble, recorder), judge = graphed(bundle, slots=slots), plain(bundle, slots=slots)
    options: dict[str, Any] = {"resolution": 4, "max_new_tokens": 20, **way}
    result, expected = ensemble.sweep(PROMPTS[:2], **options), judge.sweep(PROMPTS[:2], **options)
    assert [item.token_ids for item in result.items] == [item.token_ids for item in expected.items]
    assert all(len(result.distinct(p)) > 2 for p in range(2)), "or nothing forked"
    assert recorder.captures


def test_a_line_and_requests_take_turns(plain_bundle: Path) -> None:
    """In one cache, which the line makes grow once: graphs are captured again after that, and kept from then on."""
    (ensemble, recorder), judge = graphed(plain_bundle), plain(plain_bundle)
    ends = ({"reflection": 1.0}, {"empathy": 1.0})
    expected_line = judge.sweep_line(PROMPTS[0], *ends, max_new_tokens=8)
    expected = judge.generate(PROMPTS[0], max_new_tokens=20)
    for turn in range(3):
        before = recorder.captures
        assert ensemble.generate(PROMPTS[0], max_new_tokens=20).token_ids == expected.token_ids
        assert (recorder.captures == before) == (turn > 1)
        line = ensemble.sweep_line(PROMPTS[0], *ends, max_new_tokens=8)
        assert [i.token_ids for i in line.intervals] == [i.token_ids for i in expected_line.intervals]


def test_graphs_are_dropped_when_the_cache_grows_and_texts_stay_right(plain_bundle: Path) -> None:
    """In tokens, in rows and in sources, while requests are running."""
    (ensemble, recorder), judge = graphed(plain_bundle), plain(plain_bundle)
    long: dict[str, Any] = {"max_new_tokens": 150, "min_new_tokens": 150, "temperature": 1.0, "seed": 3}
    requests = [judge.request("i drink", weights={"base": 1.0}, request_id="first", **long)]
    requests += [
        judge.request(prompt, request_id=f"later {i}", **{**long, "max_new_tokens": 50, "min_new_tokens": 50})
        for i, prompt in enumerate((PROMPTS[1], PROMPTS[2], LONG))
    ]
    cache, step = ensemble.engine.runner.seats.cache, graphs_of(ensemble)
    shapes: list[tuple[int, int, int]] = []

    def before_step(number: int) -> None:
        if number % 20 == 0 and number // 20 < len(requests):
            ensemble.engine.add(requests[number // 20])
        own, cross = cache.own.layers, cache.cross.layers
        shapes.append((own[0].shape[1], own[0].shape[3], cross[0].shape[3]))
        if number:
            assert all(bucket.belongs_to(cache) for bucket in step._buckets.values())
        if number and shapes[-1] != shapes[-2]:
            assert len(step._buckets) == 1, "what was there before the cache grew is gone"

    done = texts(completions(drain(ensemble.engine, before_step)).values())
    assert done == texts(alone(judge, requests))
    assert {16} <= {rows for rows, _, _ in shapes}
    assert {33, 65, 129, 257} == {tokens for _, tokens, _ in shapes}
    assert {33, 65} <= {sources for _, _, sources in shapes}
    assert len(set(shapes)) >= 5
    assert 5 <= recorder.captures <= 12


def test_a_cache_that_was_cleared_is_captured_anew(plain_bundle: Path) -> None:
    (ensemble, recorder), judge = graphed(plain_bundle), plain(plain_bundle)
    requests = mixed_requests(judge, 12, seed=4)
    expected = texts(run(judge.engine, requests))
    for _ in range(3):
        before = recorder.captures
        assert texts(run(ensemble.engine, requests)) == expected
        assert recorder.captures > before
        ensemble.engine.runner.reset()
    kept = requests[:3]
    assert texts(run(ensemble.engine, kept)) == {r.request_id: expected[r.request_id] for r in kept}
    assert all(
        bucket.belongs_to(ensemble.engine.runner.seats.cache) for bucket in graphs_of(ensemble)._buckets.values()
    )


def test_a_cleared_cache_gives_its_memory_back_though_a_bucket_knew_it(plain_bundle: Path) -> None:
    """Buckets that were met once hold no tensors of the cache. (A capture's are in the graph, by address.)"""
    ensemble, recorder = graphed(plain_bundle)
    ensemble.generate("i drink", max_new_tokens=1)
    (bucket,) = graphs_of(ensemble)._buckets.values()
    assert all(known() is not None for known in bucket._tensors)
    ensemble.engine.runner.reset()
    assert all(known() is None for known in bucket._tensors)
    assert recorder.captures == 0


def test_captures_are_few_and_made_once(plain_bundle: Path) -> None:
    (ensemble, recorder), judge = graphed(plain_bundle), plain(plain_bundle)
    requests = mixed_requests(judge, 40, seed=7, longest=60)
    expected = texts(run(judge.engine, requests))
    counts = []
    for _ in range(4):
        assert texts(run(ensemble.engine, requests)) == expected
        counts.append((recorder.captures, recorder.replays))
    assert counts[0][0] <= 15
    assert counts[2][0] == counts[3][0] <= 20, "once the cache has its size, a shape is captured once"
    assert counts[3][1] > 10 * counts[3][0]


def test_a_shape_that_is_met_once_is_not_captured(plain_bundle: Path) -> None:
    ensemble, recorder = graphed(plain_bundle)
    ensemble.generate("i drink", max_new_tokens=1)
    assert (recorder.captures, recorder.replays) == (0, 0)
    ensemble.generate("i drink", max_new_tokens=1)
    assert (recorder.captures, recorder.replays) == (1, 1)


def test_the_number_of_graphs_is_bounded_the_least_recently_used_go_first(plain_bundle: Path) -> None:
    (ensemble, _), judge = graphed(plain_bundle, most=2), plain(plain_bundle)
    model, step = model_of(ensemble), graphs_of(ensemble)
    requests = mixed_requests(judge, 20, seed=9)
    assert joining(ensemble, requests) == joining(judge, requests)
    assert len(step._buckets) == 2
    cache = model.new_cache()
    memory = prefilled(model, [[5, 9, 1]], [0])[0]
    cache.insert(memory)
    sizes = []
    for count in (1, 2, 1, 3):  # the bucket of one row is used again, so that of two rows goes
        while cache.count < count:
            cache.insert(memory)
        while cache.count > count:
            cache.remove(cache.count - 1)
        model.step(torch.zeros(count, 1, dtype=torch.int64), rows_of(model, [0] * count), cache)
        sizes.append([rows for _, rows, *_ in step._buckets])
    assert sizes[1:] == [[1, 2], [2, 1], [1, 4]]


def test_a_row_that_takes_another_ones_place_brings_its_own_source(plain_bundle: Path) -> None:
    """Also when its lane is the same, so that a caller has no reason to make another tensor of lanes."""
    ensemble, _ = graphed(plain_bundle)
    model, judge = model_of(ensemble), model_of(plain(plain_bundle))
    short, long = prefilled(model, [[5, 1], [5, 9, 33, 60, 7, 1]], [0, 0])
    token, lanes = torch.zeros(1, 1, dtype=torch.int64), rows_of(model, [0])
    caches = model.new_cache(), judge.new_cache()
    for memory in (long, short, long):
        hidden = []
        for each, cache in zip((model, judge), caches, strict=True):
            if cache.count:
                cache.remove(0)
            cache.insert(memory)
            hidden.append(each.step(token, lanes, cache).clone())
        torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)


def test_graphs_go_with_their_cache(plain_bundle: Path) -> None:
    ensemble, _ = graphed(plain_bundle)
    model, step = model_of(ensemble), graphs_of(ensemble)
    token, lanes = torch.zeros(1, 1, dtype=torch.int64), rows_of(model, [0])
    for _ in range(3):
        cache = model.new_cache()
        cache.insert(prefilled(model, [[5, 9, 1]], [0])[0])
        model.step(token, lanes, cache)
        assert len(step._buckets) == 1


def test_nan_in_one_request_fails_that_request_alone(plain_bundle: Path) -> None:
    """Its keys and values are NaN; others run beside it, come later and get its place."""
    for first in (True, False):  # as the first row it is the one that spare rows repeat
        ensemble, recorder = graphed(plain_bundle, slots=5)
        sound = mixed_requests(ensemble, 12, seed=21)
        bad = ensemble.request("this one is broken", seed=1, max_new_tokens=9, request_id="bad")
        model = model_of(ensemble)
        poison(model, bad.prompt_ids)
        for request in [bad, *sound] if first else [*sound[:2], bad, *sound[2:]]:
            ensemble.engine.add(request)
        events = drain(ensemble.engine)
        assert {name: type(failure.error) for name, failure in failures(events).items()} == {"bad": NonFinite}
        assert texts(completions(events).values()) == texts(alone(plain(plain_bundle), sound))
        assert recorder.replays


def test_a_lane_of_nan_reaches_nobody_through_spare_rows(plain_bundle: Path) -> None:
    """Spare rows repeat the first row's lane, so they write NaN where later requests will be."""
    ensemble, recorder = graphed(plain_bundle, slots=8)
    options: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "seed": 1}
    bad = ensemble.request(PROMPTS[0], weights={"empathy": 1.0}, request_id="bad", **options)
    lanes = ("reflection", "fluency")
    sound = [
        ensemble.request(prompt, weights={lanes[i % 2]: 1.0}, request_id=str(i), **options)
        for i, prompt in enumerate((*PROMPTS, *PROMPTS))
    ]
    expected = texts(alone(plain(plain_bundle), sound))
    for request in (bad, *sound[:2]):  # three rows, one spare
        ensemble.engine.add(request)

    def before_step(step: int) -> None:
        if step == 6:  # so that the NaN is at a position that whoever comes next has not written yet
            for layer in model_of(ensemble).decoder:
                layer.qkv.lora_b[:, 1].fill_(float("nan"))  # type: ignore[index, union-attr]
        if step > 6 and step - 5 < len(sound):
            ensemble.engine.add(sound[step - 5])

    events = drain(ensemble.engine, before_step)
    assert set(failures(events)) == {"bad"}
    assert texts(completions(events).values()) == expected
    assert recorder.replays


def test_an_attached_adapter_ends_the_graphs(plain_bundle: Path) -> None:
    ensemble, _ = graphed(plain_bundle)
    model = model_of(ensemble)
    model.attach([])
    assert model._fast is None


def test_a_device_that_cannot_capture_says_so_when_the_model_is_loaded(plain_bundle: Path) -> None:
    def refuse(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("CUDA error: not permitted\nCompile with TORCH_USE_CUDA_DSA")

    with pytest.raises(UnsupportedModel, match=r"no CUDA graph can be captured here: CUDA error: not permitted$"):
        GraphedStep(model_of(plain(plain_bundle)), capture=refuse)


def test_other_devices_are_refused_by_name(plain_bundle: Path) -> None:
    model = model_of(plain(plain_bundle))
    model.facts = replace(model.facts, device=torch.device("meta"))
    with pytest.raises(UnsupportedModel, match=r"the device is meta; allowed: cpu, cuda"):
        model.compilation(Path("unused"))
