"""CUDA graphs of the decoding step against the plain step on the same device; tests/core/test_t5_graphs.py has what
needs no GPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emorl_core.ensemble import Ensemble
from emorl_core.models.graphs import CudaCapture
from emorl_core.models.t5.graphs import GraphedStep
from emorl_core.models.t5.model import T5
from tests.builders import tiny_t5_bundle
from tests.core.driving import (
    PROMPTS,
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

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["relu tied", "gated untied"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("bundle"), gated=request.param == "gated untied")


def load(folder: Path, dtype: str = "float32", **options: Any) -> Ensemble:
    return Ensemble.load(folder, device="cuda", dtype=dtype, **options)


def model_of(ensemble: Ensemble) -> T5:
    model = ensemble.engine.model
    assert isinstance(model, T5)
    return model


def buckets(ensemble: Ensemble) -> list[Any]:
    step = model_of(ensemble)._fast
    assert isinstance(step, GraphedStep)
    return list(step._buckets.values())


def steps(model: T5, count: int, tokens: int) -> list[Tensor]:
    """Hidden states of `tokens` steps of `count` rows in different lanes; the same for every call of one size."""
    draw = random.Random(count)
    prompts = [[*(draw.randint(3, 60) for _ in range(draw.randint(1, 60))), 1] for _ in range(count)]
    numbers = [draw.randint(0, len(model.adapters)) for _ in range(count)]
    cache = model.new_cache()
    for memory in prefilled(model, prompts, numbers):
        cache.insert(memory)
    lanes = rows_of(model, numbers)
    fed = [
        torch.tensor([[draw.randint(3, 60)] for _ in range(count)], device=model.facts.device) for _ in range(tokens)
    ]
    return [model.step(each, lanes, cache).clone() for each in fed]


def test_replays_give_the_hidden_states_of_the_plain_step(bundle: Path) -> None:
    """Past the cache's first growth, so with graphs that are dropped and captured again."""
    graphed, plain = load(bundle, compile=True), load(bundle)
    for count in (1, 2, 3, 5, 8, 9, 17, 33, 65):
        made, expected = steps(model_of(graphed), count, 40), steps(model_of(plain), count, 40)
        torch.testing.assert_close(torch.cat(made), torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert any(bucket.replay is not None for bucket in buckets(graphed))


def test_requests_that_join_and_leave_get_the_tokens_of_the_plain_step(bundle: Path) -> None:
    graphed, plain = load(bundle, slots=20, compile=True), load(bundle, slots=20)
    for count in (1, 2, 5, 9, 20):
        requests = mixed_requests(plain, count, seed=count, longest=60)
        assert joining(graphed, requests) == joining(plain, requests), count
    assert any(bucket.replay is not None for bucket in buckets(graphed))


def test_a_sweep_forks_right(bundle: Path) -> None:
    graphed, plain = load(bundle, compile=True), load(bundle)
    options: dict[str, Any] = {"resolution": 4, "max_new_tokens": 20, "temperature": 0.9, "seed": 5}
    made, expected = (ensemble.sweep(PROMPTS[:2], **options) for ensemble in (graphed, plain))
    assert [item.token_ids for item in made.items] == [item.token_ids for item in expected.items]


def test_graphs_are_captured_anew_after_clear_while_an_old_result_is_held(bundle: Path) -> None:
    """The pool of the graphs that are gone still has a tensor in it then, and cannot be captured into again."""
    graphed, plain = load(bundle, compile=True), load(bundle)
    model, requests = model_of(graphed), mixed_requests(plain, 6, seed=4)
    expected = joining(plain, requests)
    cache = model.new_cache()
    cache.insert(prefilled(model, [[5, 9, 1]], [0])[0])
    token, lanes = torch.zeros(1, 1, dtype=torch.int64, device="cuda"), rows_of(model, [0])
    held: list[Tensor] = []
    for _ in range(3):
        held += [model.step(token, lanes, cache) for _ in range(3)]
        cache.clear()
        cache.insert(prefilled(model, [[5, 9, 1]], [0])[0])
        assert joining(graphed, requests) == expected
        graphed.engine.runner.reset()
    assert torch.isfinite(torch.cat(held)).all()


def test_a_pool_that_lost_all_its_graphs_is_replaced(bundle: Path) -> None:
    capture, x = CudaCapture(torch.device("cuda")), torch.ones(1000, device="cuda")
    results = []
    for factor in range(3):
        replay = capture(lambda: x * factor)  # noqa: B023 - called at once
        results.append(replay())
        assert results[-1].sum().item() == 1000 * factor
        del replay


def test_nan_in_one_request_fails_that_request_alone(bundle: Path) -> None:
    graphed, plain = load(bundle, slots=5, compile=True), load(bundle, slots=5)
    sound = mixed_requests(plain, 12, seed=21)
    bad = graphed.request("this one is broken", seed=1, max_new_tokens=9, request_id="bad")
    model = model_of(graphed)
    poison(model, bad.prompt_ids)
    for request in [*sound[:2], bad, *sound[2:]]:
        graphed.engine.add(request)
    events = drain(graphed.engine)
    assert set(failures(events)) == {"bad"}
    assert {name: said(c) for name, c in completions(events).items()} == {
        completion.request_id: said(completion) for completion in run(plain.engine, sound)
    }


def test_bfloat16_runs_without_faults_and_follows_the_plain_step(bundle: Path) -> None:
    """Loosely: 8 bits of mantissa, and attention rounds elsewhere than the plain step's fused kernel."""
    graphed, plain = load(bundle, "bfloat16", slots=20, compile=True), load(bundle, "bfloat16")
    joining(graphed, mixed_requests(graphed, 30, seed=3, longest=60))
    for count in (1, 6, 20):
        made = torch.cat(steps(model_of(graphed), count, 20)).float()
        expected = torch.cat(steps(model_of(plain), count, 20)).float()
        assert (made - expected).abs().mean() < 0.1 * expected.std()


def test_memory_does_not_grow_with_captures(bundle: Path) -> None:
    """Caches come and go, each with graphs of its own."""
    graphed = load(bundle, compile=True)
    model, held = model_of(graphed), list[int]()
    for _ in range(30):
        steps(model, 5, 40)
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[-1] <= held[9] + 2**18
