"""The keys and values of what runs stay within `kv_cache_bytes`: what does not fit waits, what never fits is refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import Store
from emorl_core.engine.engine import Engine
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest, PromptTooLong
from emorl_core.fake import fake_ensemble
from emorl_core.types import Completion, Event, Request, Sampling
from tests.core.driving import alone, completions, drain, failures, mixed_requests, run, said
from tests.core.test_causal_engine import engine_of
from tests.core.test_causal_golden import MIXES, PROMPTS, adapters_of
from tests.supported_models import BY_NAME, tiny_causal

pytestmark = pytest.mark.both_shapes

_ENTRY = 32  # bytes of a lane row's token in the fake model's cache
_LEAST = 4 * 33 * _ENTRY  # of a store, however little is asked for


def ask(ensemble: Ensemble, name: str, tokens: int, length: int, **options: object) -> Request:
    """One lane, unless weights say otherwise; a prompt and a reply of so many tokens."""
    options = {"weights": {"empathy": 1.0}, "seed": 3} | options
    made = ensemble.request("x", max_new_tokens=length, min_new_tokens=length, request_id=name, **options)
    return replace(made, prompt_ids=(*range(40, 39 + tokens), 1))


def bounded_steps(engine: Engine, bound: int) -> list[Event]:
    """All events; the bound holds after every step."""
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
        assert engine.stats.kv_cache_bytes <= bound
    return events


@pytest.mark.parametrize("rows", [8, 12, 40])
@pytest.mark.parametrize("tokens", [7, None])
def test_any_bound_gives_the_same_answers_within_the_bound(rows: int, tokens: int | None) -> None:
    """Room for so many lane rows of the longest prompt and reply."""
    requests = mixed_requests(fake_ensemble(), 40, seed=4)
    longest = max(len(request.prompt_ids) for request in requests) + 24
    bound = rows * (longest + 16) * _ENTRY + _LEAST
    ensemble = fake_ensemble(slots=16, kv_cache_bytes=bound, prefill_tokens=tokens)
    for request in requests:
        ensemble.engine.add(request)
    done = completions(bounded_steps(ensemble.engine, bound))
    expected = completions(alone(fake_ensemble(), requests))
    assert {name: said(c) for name, c in done.items()} == {name: said(c) for name, c in expected.items()}
    assert ensemble.engine.faults == 0


def test_a_real_model_within_its_bound(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", "llama")
    adapters = adapters_of(BY_NAME["llama"], base, tmp_path)
    requests = [
        Request(f"{i} {j}", prompt, tuple(mix), Sampling(max_new_tokens=30 if i == j else 8))
        for i, prompt in enumerate((*PROMPTS, PROMPTS[0] * 5))
        for j, mix in enumerate(MIXES.tolist())
    ]
    bound = 2 * 3 * 2 * 8 * 4 * 12 * 97  # layers, heads and their size in float32; 12 lane rows of 97 tokens
    engine = engine_of(base, adapters, kv_cache_bytes=bound, prefill_tokens=6)
    for request in requests:
        engine.add(request)
    done = completions(bounded_steps(engine, bound))
    free = {c.request_id: c.token_ids for c in run(engine_of(base, adapters), requests)}
    assert {name: c.token_ids for name, c in done.items()} == free


def test_a_real_encoder_within_its_bound(plain_bundle: Path) -> None:
    bound = 400_000
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32", kv_cache_bytes=bound)
    requests = mixed_requests(ensemble, 24, seed=8)
    for request in requests:
        ensemble.engine.add(request)
    done = completions(bounded_steps(ensemble.engine, bound))
    judge = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    assert {name: said(c) for name, c in done.items()} == {c.request_id: said(c) for c in alone(judge, requests)}


@pytest.mark.parametrize("lanes", [1, 4])
def test_what_can_never_fit_is_refused_with_what_it_takes(lanes: int) -> None:
    bound = 100_000
    ensemble = fake_ensemble(kv_cache_bytes=bound)
    weights = {"weights": {"base": 1.0, "reflection": 1.0, "empathy": 1.0, "fluency": 1.0}} if lanes == 4 else {}
    in_lanes = "in 1 lane " if lanes == 1 else "in 4 lanes "
    told = rf"{in_lanes}their keys and values take \d+ bytes; allowed: up to {bound} \(kv_cache_bytes\)"
    with pytest.raises(InvalidRequest, match="the prompt has 20 tokens and max_new_tokens is 4000; " + told) as found:
        ensemble.engine.add(ask(ensemble, "reply", 20, 4000, **weights))
    assert found.value.param == "max_new_tokens"
    with pytest.raises(PromptTooLong, match="the prompt has 4000 tokens and max_new_tokens is 20; " + told) as found:
        ensemble.engine.add(ask(ensemble, "prompt", 4000, 20, **weights))
    assert found.value.param == "prompt"
    assert not ensemble.engine.has_work
    run(ensemble.engine, [ask(ensemble, "fits", 20, 20, **weights)])


def test_what_does_not_fit_waits_and_is_not_overtaken() -> None:
    ensemble = fake_ensemble(encoder=False, slots=8, kv_cache_bytes=8 * 97 * _ENTRY)
    engine = ensemble.engine
    for name in "abcdef":
        engine.add(ask(ensemble, name, 8, 10))
    engine.step()
    engine.add(ask(ensemble, "long", 60, 110))  # with so many others it is too much
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (6, 1)
    engine.add(ask(ensemble, "late", 8, 2))
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (6, 2), "there is room for this one, but not its turn"
    ended = [event.request_id for event in bounded_steps(engine, 8 * 97 * _ENTRY) if isinstance(event, Completion)]
    assert ended == [*"abcdef", "late", "long"], "late comes behind it, and is short"


def test_who_waits_for_room_can_be_cancelled() -> None:
    ensemble = fake_ensemble(encoder=False, slots=8, kv_cache_bytes=8 * 97 * _ENTRY)
    for name, tokens, length in (*((name, 8, 10) for name in "abcdef"), ("long", 60, 110), ("late", 8, 2)):
        ensemble.engine.add(ask(ensemble, name, tokens, length))
    ensemble.engine.step()
    ensemble.engine.cancel("long")
    ended = [event.request_id for event in drain(ensemble.engine) if isinstance(event, Completion)]
    assert ended == ["long", "late", *"abcdef"]


@pytest.mark.parametrize("rows", [4, 9])
def test_forks_wait_for_room_too(rows: int) -> None:
    """A sweep and segments whose branches would need much more."""
    tokens = 113  # of prompt and reply
    bound = rows * tokens * _ENTRY + _LEAST
    sweep = {"resolution": 4, "max_new_tokens": 12}
    line = ({"reflection": 1}, {"empathy": 1, "fluency": 1})
    tight, free = fake_ensemble(kv_cache_bytes=bound), fake_ensemble()
    step = tight.engine.step

    def checked() -> list[Event]:
        events = step()
        assert tight.engine.stats.kv_cache_bytes <= bound
        return events

    tight.engine.step = checked  # type: ignore[method-assign]
    found, expected = (each.sweep(["so much", "i drink"], **sweep) for each in (tight, free))
    assert [item.text for item in found.items] == [item.text for item in expected.items]
    found_line, expected_line = (each.sweep_line("so much", *line, max_new_tokens=6) for each in (tight, free))
    assert found_line.intervals == expected_line.intervals


def test_plain_requests_get_room_from_a_sweep_that_holds_it_all() -> None:
    ensemble = fake_ensemble(encoder=False, slots=8, kv_cache_bytes=12 * 81 * _ENTRY)
    engine = ensemble.engine
    plan = ensemble.sweep_plan("so much", resolution=6, temperature=1.5, max_new_tokens=60, min_new_tokens=60, seed=1)
    for group in plan.groups():
        engine.add_group(group)
    for _ in range(20):
        engine.step()
    engine.add(ask(ensemble, "plain", 8, 4))
    ended = [event.request_id for event in drain(engine) if isinstance(event, Completion)]
    assert ended[0] == "plain"
    assert not failures(drain(engine))


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_bounded_cache_never_holds_more_and_loses_nothing(seed: int, encoder: bool) -> None:
    """Rows come within extents that change, each within the bound; what is held stays within it."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    own, cross = (Store(2, 1, 4, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    cache = KVCache(own, cross if encoder else None)
    bound = cache.bytes_of(12, 40, 40) + cache.bytes_of(1, 1, 1)
    rows: list[tuple[torch.Tensor, int, int]] = []  # what each read; its prompt and reply at most
    for _ in range(200):
        prompt, reply = draw.randint(1, 150), draw.randint(1, 60)
        most = [max(a, b) for a, b in zip((prompt, reply), _longest(rows), strict=True)]
        if draw.random() < 0.5 and cache.bytes_of(len(rows) + 1, *most) <= bound:
            cache.bound(len(rows) + 1, *most, bound)
            kv = torch.randn(2, 2, 1, prompt, 4, generator=generator)
            assert cache.insert(Memory(kv)) == len(rows)
            rows.append((kv, prompt, reply))
        elif rows and draw.random() < 0.5:
            cache.reserve(1)
            place = draw.randrange(len(rows))
            moved = cache.remove(place)
            last = rows.pop()
            if moved is not None:
                rows[place] = last
        assert cache.nbytes <= bound
        for place, (kv, prompt, _) in enumerate(rows):
            assert torch.equal(cache.memory(place, 0, prompt).kv, kv)


def _longest(rows: Sequence[tuple[torch.Tensor, int, int]]) -> tuple[int, int]:
    return max((row[1] for row in rows), default=0), max((row[2] for row in rows), default=0)
