"""Prompts that were read already: other weights skip the encoder, and the memory of it is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from emorl_core.cache.kv import Memory
from emorl_core.cache.prefix import PrefillCache
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.lanes.lane import Lane, lane_points
from tests.core.driving import alone, mixed_requests, prefilled, run, said

pytestmark = pytest.mark.both_shapes


def memory(numbers: int) -> Memory:
    return Memory(torch.zeros(2, 1, 1, numbers // 2, 1))


def test_the_least_recently_used_goes_first_when_the_bytes_run_out() -> None:
    cache = PrefillCache(3 * 40)
    for prompt in ((1,), (2,), (3,)):
        cache.put((prompt, 0), memory(10))
    assert cache.nbytes == 120
    assert cache.get(((1,), 0)) is not None  # used: now the youngest
    cache.put(((4,), 0), memory(10))
    assert [cache.get(((p,), 0)) is not None for p in (1, 2, 3, 4)] == [True, False, True, True]
    assert cache.nbytes == 120
    cache.put(((5,), 0), memory(20))  # twice the size: two go
    assert cache.nbytes == 120
    assert (cache.hits, cache.misses) == (4, 1)


def test_what_is_larger_than_the_bound_is_not_kept_and_drives_nobody_out() -> None:
    cache = PrefillCache(100)
    cache.put(((1,), 0), memory(10))
    cache.put(((2,), 0), memory(26))
    assert cache.get(((2,), 0)) is None
    assert cache.get(((1,), 0)) is not None


def test_the_same_key_twice_counts_once() -> None:
    cache = PrefillCache(100)
    cache.put(((1,), 0), memory(10))
    cache.put(((1,), 0), memory(20))
    assert cache.nbytes == 80
    cache.discard(((1,), 0))
    cache.discard(((1,), 0))
    assert cache.nbytes == 0


def test_lanes_and_prompts_are_keys_of_their_own() -> None:
    cache = PrefillCache(1000)
    cache.put(((1, 2), 0), memory(2))
    assert cache.get(((1, 2), 1)) is None
    assert cache.get(((1,), 0)) is None
    assert cache.get(((1, 2), 0)) is not None
    cache.clear()
    assert cache.get(((1, 2), 0)) is None


class Counting:
    """How often each (prompt, lane) was prefilled by the model of an ensemble."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.seen: list[tuple[tuple[int, ...], int]] = []
        model = ensemble.engine.model
        prefill = model.prefill

        points = lane_points(len(model.adapters))

        def counted(lanes: Sequence[Lane]) -> list[Memory]:
            self.seen += [(lane.prompt_ids, points.index(lane.coefficients)) for lane in lanes]
            return prefill(lanes)

        model.prefill = counted  # type: ignore[method-assign]


def test_the_same_prompt_under_other_weights_skips_the_encoder(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    counting = Counting(ensemble)
    for weights in (
        {"reflection": 1},
        {"reflection": 0.5, "empathy": 0.5},
        {"empathy": 1},
        {"reflection": 2, "base": 1},
    ):
        ensemble.generate("i drink", weights, max_new_tokens=3)
    ids = ensemble.encode("i drink")
    assert counting.seen == [(ids, 1), (ids, 2), (ids, 0)]
    stats = ensemble.engine.stats
    assert (stats.prefill_hits, stats.prefill_misses) == (3, 3)
    assert stats.prefill_cache_bytes == sum(m.nbytes for m in prefilled(ensemble.engine.model, [ids] * 3, [0, 1, 2]))


def test_twins_that_arrive_together_are_read_once() -> None:
    ensemble = fake_ensemble()
    counting = Counting(ensemble)
    run(ensemble.engine, [ensemble.request("so much", seed=i, max_new_tokens=2) for i in range(5)])
    assert len(counting.seen) == len(set(counting.seen)) == 3


@pytest.mark.parametrize("bound", [0, 1, 600, 2**20])
def test_any_bound_gives_the_same_answers_within_the_bound(bound: int) -> None:
    ensemble = fake_ensemble(slots=4, prefill_cache_bytes=bound)
    requests = mixed_requests(ensemble, 30, seed=9)
    for request in requests:
        ensemble.engine.add(request)
    done = {}
    while ensemble.engine.has_work:
        done.update({e.request_id: e for e in ensemble.engine.step() if not hasattr(e, "token_id")})
        assert ensemble.engine.stats.prefill_cache_bytes <= bound
    expected = alone(fake_ensemble(), requests)
    assert [said(done[r.request_id]) for r in requests] == [said(c) for c in expected]  # type: ignore[arg-type]
    assert (ensemble.engine.stats.prefill_hits > 0) == (bound >= 600)
