"""Tokens copied from the prompt: whatever is proposed, what a request says is what plain decoding says."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache
from emorl_core.engine.engine import Engine
from emorl_core.engine.seats import Seats
from emorl_core.engine.speculation.lookup import MOST_TOKENS, Lookup
from emorl_core.engine.speculation.proposer import Proposals, Proposer
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.fake import FakeModel
from emorl_core.models.family import LaneModel
from emorl_core.types import Completion, FinishReason, PromptLookup, Request, Sampling
from tests.core.driving import completions, drain, failures, prefilled, rows_of, run, said, token_events
from tests.core.test_causal_engine import adapters_of, engine_of
from tests.supported_models import BY_NAME, tiny_causal

Make = Callable[[PromptLookup], Engine]
_END = 1


@pytest.fixture(params=["fake", "fake decoder-only", "T5", "llama", "gemma2"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """prompt_lookup -> an engine of its own, with three adapters."""
    if request.param.startswith("fake"):
        return lambda mode: fake_ensemble(encoder="decoder" not in request.param, prompt_lookup=mode).engine
    if request.param == "T5":
        folder: Path = request.getfixturevalue("plain_bundle")
        return lambda mode: Ensemble.load(folder, device="cpu", dtype="float32", slots=8, prompt_lookup=mode).engine
    base = tiny_causal(tmp_path / "base", request.param)
    adapters = adapters_of(BY_NAME[request.param], base, tmp_path)
    return lambda mode: engine_of(base, adapters, slots=8, prompt_lookup=mode)


def drawn(engine: Engine, count: int, seed: int) -> list[Request]:
    """Requests with all kinds of sampling over prompts that say things twice."""
    draw = random.Random(seed)
    vocabulary, lanes = engine.facts.vocab_size, len(engine.lanes)
    kinds: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": 0.3},
        {"no_repeat_ngram_size": 2, "logit_bias": ((vocabulary - 3, 2.0),)},
    ]
    requests = []
    for i in range(count):
        words = [[draw.randrange(3, vocabulary) for _ in range(3)] for _ in range(3)]
        prompt = (*[token for _ in range(4) for token in draw.choice(words)], _END)
        length = draw.randint(1, 24)
        weights = [draw.uniform(0.1, 1.0) if draw.random() < 0.7 else 0.0 for _ in range(lanes - 1)]
        sampling = Sampling(
            max_new_tokens=length,
            min_new_tokens=draw.choice((0, length)),
            seed=i,
            stop=draw.choice(((), (), ("e",), (" 7",))),
            **draw.choice(kinds),
        )
        requests.append(
            Request(
                f"r{i}",
                prompt,
                (0.3, *weights),
                sampling,
                combine=draw.choice(("hidden", "hidden", "probs")),
                attribution=draw.random() < 0.3,
                top_logprobs=draw.choice((0, 3)),
                stream=draw.random() < 0.6,
                logprobs=draw.random() < 0.6,
            )
        )
    return requests


def knowing(monkeypatch: pytest.MonkeyPatch, replies: dict[str, Sequence[int]], seed: int, wrong: float = 0.3) -> None:
    """From now on what is proposed is what these requests will say, with some tokens wrong."""
    draw = random.Random(seed)

    def propose(self: Proposer, seats: Seats) -> Proposals:
        found: Proposals = {}
        for branch in seats.branches:
            branch.lookup = branch.lookup or Lookup((), ())
            rest = replies[branch.members[0].request.request_id][len(branch.tokens) :]
            most = min(draw.randint(0, MOST_TOKENS), self._most(branch, seats))
            tokens = [token if draw.random() > wrong else draw.randrange(3, 30) for token in rest[: max(0, most)]]
            if self.mode != "off" and tokens and _END not in tokens:
                found[branch] = tuple(tokens)
        return found

    monkeypatch.setattr(Proposer, "propose", propose)


def joined(engine: Engine, requests: Sequence[Request]) -> tuple[dict[str, Completion], list[Any]]:
    """A third at first, the others one by one. None may fail, nor a step."""
    waiting = list(requests)

    def before_step(step: int) -> None:
        for _ in range(len(requests) // 3 if step == 0 else 1):
            if waiting:
                engine.add(waiting.pop(0))

    events = drain(engine, before_step)
    while waiting:
        events += drain(engine, before_step)
    assert not failures(events)
    assert engine.faults == 0, engine.last_fault
    return completions(events), events


def same(found: Completion, expected: Completion) -> None:
    """All that a completion tells, but for times and cost; float sums differ in the last bits."""
    assert said(found) == said(expected)
    assert found.weights == expected.weights
    torch.testing.assert_close(torch.tensor(found.logprobs), torch.tensor(expected.logprobs), rtol=1e-4, atol=1e-4)
    assert len(found.attributions) == len(expected.attributions)
    for mine, theirs in zip(found.attributions, expected.attributions, strict=True):
        assert mine.runner_up == theirs.runner_up
        torch.testing.assert_close(torch.tensor(mine.parts), torch.tensor(theirs.parts), rtol=1e-3, atol=1e-3)
    ranked = [[[token for token, _ in place] for place in each.top_logprobs] for each in (found, expected)]
    assert ranked[0] == ranked[1]


@pytest.mark.parametrize("seed", range(2))
def test_what_is_proposed_changes_nothing(make: Make, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong proposals of every length, over all sampling, for some of the requests of a batch."""
    plain, engine = make("off"), make("on")
    requests = drawn(plain, 24, seed)
    expected = {request.request_id: run(plain, [request])[0] for request in requests}
    knowing(monkeypatch, {name: completion.token_ids for name, completion in expected.items()}, seed)
    done, events = joined(engine, requests)
    assert done.keys() == expected.keys()
    for name, completion in done.items():
        same(completion, expected[name])
    for request in requests:
        own = token_events(events, request.request_id)
        assert [event.index for event in own] == (list(range(len(own))) if request.stream else [])
        if request.stream:
            assert tuple(event.token_id for event in own) == expected[request.request_id].token_ids
            assert tuple(event.text for event in own) == expected[request.request_id].token_texts
            assert [event.completion is None for event in own] == [True] * (len(own) - 1) + [False]
    stats = engine.stats
    assert 0 < stats.accepted_tokens < stats.proposed_tokens
    assert plain.stats.proposed_tokens == 0
    assert not engine.runner.branches
    assert not engine.runner.seats.cache.count


@pytest.mark.parametrize("seed", range(2))
def test_replies_that_repeat_themselves_are_copied(make: Make, seed: int) -> None:
    """By the lookup itself: a bias makes them say the same few tokens over and over."""
    plain, engine = make("off"), make("on")
    bias = tuple((token, 60.0) for token in (5, 6, 7))
    requests = [
        replace(request, sampling=replace(request.sampling, logit_bias=bias, max_new_tokens=24, no_repeat_ngram_size=0))
        for request in drawn(plain, 9, seed)
    ]
    expected = {request.request_id: run(plain, [request])[0] for request in requests}
    done, _ = joined(engine, requests)
    for name, completion in done.items():
        same(completion, expected[name])
    assert engine.stats.accepted_tokens > 0


def test_a_stop_string_within_what_is_accepted_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens behind it are not told, and a chat that goes on is read as it was said."""
    plain = fake_ensemble(encoder=False).engine
    prompt = (*range(260, 270), _END)
    request = Request("a", prompt, (0.0, 1.0, 1.0, 1.0), Sampling(max_new_tokens=20, min_new_tokens=20, seed=1))
    whole = run(plain, [request])[0]
    stop = next(text for text in whole.token_texts[2:] if text.strip())
    stopped = replace(request, sampling=replace(request.sampling, stop=(stop,)))
    expected = run(plain, [stopped])[0]
    engine = fake_ensemble(encoder=False, prompt_lookup="on").engine
    knowing(monkeypatch, {"a": whole.token_ids, "b": ()}, 0, wrong=0.0)
    found = run(engine, [stopped])[0]
    same(found, expected)
    assert found.finish_reason is FinishReason.STOP
    assert engine.stats.accepted_tokens > 0
    # What it said, but for the last token, is known to a prompt that begins with it.
    again = replace(request, request_id="b", prompt_ids=(*prompt, *found.token_ids, 270, _END))
    before = engine.stats.prefill_tokens_found
    same(run(engine, [again])[0], run(plain, [again])[0])
    assert engine.stats.prefill_tokens_found - before == 3 * (len(prompt) + len(found.token_ids) - 1)


def stepped(model: LaneModel, cache: KVCache, rows: Sequence[Sequence[int]], lanes: Sequence[int]) -> Tensor:
    """Hidden states of each row's tokens, fed one by one in copies of the rows; the first row's first."""
    found = []
    for place, tokens in enumerate(rows):
        alone = cache.take([place])
        for token in tokens:
            hidden = model.step(torch.tensor([[token]]), rows_of(model, lanes[place : place + 1]), alone)
            found.append(hidden[:, 0].clone())
    return torch.cat(found)


@torch.inference_mode()
def test_ragged_steps_are_steps_of_one_token(make: Make) -> None:
    """Hidden states and what is left in the cache, also when the last tokens are forgotten and others come instead."""
    model = make("off").model
    prompts, lanes = [(5, 9, 7, _END), (8, _END), (6, 7, 6, 7, 6, 7, 9, _END)], [1, 0, 2]
    cache = model.new_cache()
    for memory in prefilled(model, prompts, lanes):
        cache.insert(memory)
    base = (0.0,) * len(model.adapters)
    firsts = [model.unread(Lane(base, prompt), ()) for prompt in prompts]
    rows = [(*firsts[0], 11, 12, 13), firsts[1], (*firsts[2], 14)]
    expected = stepped(model, cache, rows, lanes)
    counts, before = [len(row) for row in rows], list(cache.lengths)
    each = [lane for lane, n in zip(lanes, counts, strict=True) for _ in range(n)]
    flat = torch.tensor([token for row in rows for token in row])
    found = model.ragged_step(flat, counts, rows_of(model, each), cache)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert cache.lengths == [n + more for n, more in zip(before, counts, strict=True)]
    cache.shorten(0, 2)
    expected = stepped(model, cache, [(21,), (22,), (23,)], lanes)
    found = model.step(torch.tensor([[21], [22], [23]]), rows_of(model, lanes), cache)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert cache.lengths == [before[0] + counts[0] - 1, before[1] + counts[1] + 1, before[2] + counts[2] + 1]


@pytest.mark.both_shapes
def test_a_step_that_fails_with_proposals_is_run_again_without(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, engine = fake_ensemble().engine, fake_ensemble(prompt_lookup="on").engine
    requests = drawn(plain, 8, 5)
    expected = {request.request_id: run(plain, [request])[0] for request in requests}
    knowing(monkeypatch, {name: completion.token_ids for name, completion in expected.items()}, 5)

    def broken(*_: object) -> Tensor:
        raise RuntimeError("no memory for so many rows")

    monkeypatch.setattr(engine.model, "ragged_step", broken)
    step = FakeModel.ragged_step
    monkeypatch.setattr(
        engine.model,
        "step",
        lambda tokens, lanes, cache: step(
            engine.model, tokens.flatten(), [tokens.shape[1]] * cache.count, lanes.each(tokens.shape[1]), cache
        ).view(*tokens.shape, -1),
    )
    for request in requests:
        engine.add(request)
    events = drain(engine)
    assert not failures(events)
    for name, completion in completions(events).items():
        same(completion, expected[name])
    assert engine.faults > 0


@pytest.mark.both_shapes
def test_one_that_is_not_finite_fails_alone_and_where_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fake_ensemble().engine
    requests = drawn(plain, 6, 7)
    expected = {request.request_id: run(plain, [request])[0] for request in requests}
    engine = fake_ensemble(prompt_lookup="on").engine
    knowing(monkeypatch, {name: completion.token_ids for name, completion in expected.items()}, 7)
    engine.model.poisoned.add(requests[2].prompt_ids)
    for request in requests:
        engine.add(request)
    events = drain(engine)
    assert failures(events).keys() == {"r2"}
    assert not token_events(events, "r2")
    for name, completion in completions(events).items():
        same(completion, expected[name])


@pytest.mark.parametrize("encoder", [True, False])
def test_what_is_not_finite_behind_a_wrong_proposal_is_forgotten(
    encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain decoding never computes it: neither this request nor a later one may find it in the cache."""
    plain = fake_ensemble(encoder=encoder).engine
    request = Request(
        "a", (5, 6, 7, _END), (0.0, 1.0, 1.0, 0.0), Sampling(max_new_tokens=12, min_new_tokens=12, seed=1)
    )
    expected = run(plain, [request])[0]
    engine = fake_ensemble(encoder=encoder, prompt_lookup="on").engine
    knowing(monkeypatch, {"a": [3] * 12}, 0, wrong=0.0)
    step = engine.model.ragged_step

    def step_with_holes(tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:
        places, at = cache.own.ahead(counts)
        hidden = step(tokens, counts, lanes, cache)
        for row, (place, position) in enumerate(zip(places, at, strict=True)):
            if position > cache.lengths[place] - counts[place]:  # a proposed one
                hidden[row] = float("nan")
                for layer in cache.own.layers:
                    layer[:, place, :, position] = float("nan")
        return hidden

    monkeypatch.setattr(engine.model, "ragged_step", step_with_holes)
    same(run(engine, [request])[0], expected)
    assert engine.stats.proposed_tokens > engine.stats.accepted_tokens
    assert all(torch.isfinite(layer).all() for layer in engine.runner.seats.cache.own.layers)


@pytest.mark.both_shapes
def test_a_cancelled_request_has_said_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, engine = fake_ensemble().engine, fake_ensemble(prompt_lookup="on").engine
    requests = drawn(plain, 12, 9)
    expected = {request.request_id: run(plain, [request])[0] for request in requests}
    knowing(monkeypatch, {name: completion.token_ids for name, completion in expected.items()}, 9)
    for request in requests:
        engine.add(request)
    done = completions(drain(engine, lambda step: engine.cancel(f"r{step}")))
    cut = [each for each in done.values() if each.finish_reason is FinishReason.CANCELLED]
    assert cut
    for each in cut:
        assert each.token_ids == expected[each.request_id].token_ids[: len(each.token_ids)]
        assert each.token_texts == expected[each.request_id].token_texts[: len(each.token_ids)]


def test_no_more_is_fed_than_positions_tokens_and_room_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_causal(tmp_path / "base", "llama", max_position_embeddings=32)
    model = engine_of(base, []).model
    prompt, reply = (5, 9, 7, 8, 6, 4, 11, _END), 24
    room = model.new_cache().bytes_of(1, len(prompt), reply)
    whole = replace(
        Request("a", prompt, (1.0,), Sampling(max_new_tokens=reply, min_new_tokens=reply, seed=1)), request_id="a"
    )
    expected = run(engine_of(base, []), [whole])[0]
    knowing(monkeypatch, {"a": expected.token_ids}, 3, wrong=0.1)
    engine = engine_of(base, [], prompt_lookup="on", kv_cache_bytes=room)
    same(run(engine, [whole])[0], expected)
    assert engine.stats.accepted_tokens > 0
    assert engine.stats.kv_cache_bytes <= room
