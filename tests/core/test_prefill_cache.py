"""What was read already: the longest known beginning is not computed again, and the memory of it is bounded."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.adapters.adapter import Adapter
from emorl_core.cache.kv import Memory
from emorl_core.cache.prefix import PrefillCache, common
from emorl_core.engine.engine import Engine
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from emorl_core.models.t5 import prompts
from emorl_core.types import Request
from tests.builders import tiny_t5_bundle
from tests.core.driving import alone, drain, failures, mixed_requests, prefilled, run, said

pytestmark = pytest.mark.both_shapes

_TOKEN = 16  # bytes of a token's keys and values below


def memory(labels: Sequence[Hashable], start: int = 0) -> Memory:
    """Keys and values that depend on all that came before, as those of a decoder do."""
    numbers = [float(hash(tuple(labels[: i + 1])) % 9973) for i in range(start, len(labels))]
    return Memory(torch.tensor(numbers).view(1, 1, 1, -1, 1).expand(2, 1, 1, -1, 2).clone())


def keep(cache: PrefillCache, labels: str) -> None:
    cache.put(labels, memory(labels))


def test_the_longest_known_beginning_is_found() -> None:
    cache = PrefillCache(1000)
    keep(cache, "system one")
    keep(cache, "system two")
    for asked, known in (("system one", 10), ("system one and more", 10), ("system three", 8), ("sys", 3), ("one", 0)):
        count, found = cache.find(asked)
        assert count == cache.known(asked) == known
        if known:
            assert found is not None
            assert torch.equal(found.kv, memory(asked[:known]).kv)
        else:
            assert found is None
    assert cache.nbytes == 13 * _TOKEN, "what both begin with is held once"


def test_the_least_recently_used_end_goes_first_when_the_bytes_run_out() -> None:
    cache = PrefillCache(12 * _TOKEN)
    for labels in ("abcd1111", "abcd2222"):
        keep(cache, labels)
    assert cache.known("abcd1111") == 8  # used: now the youngest
    keep(cache, "abcd3333")
    assert [cache.known(labels) for labels in ("abcd1111", "abcd2222", "abcd3333")] == [8, 4, 8]
    assert cache.nbytes == 12 * _TOKEN
    keep(cache, "xxxxyyyy")  # 8 more: two ends go, not what they have in common with nobody else
    assert [cache.known(labels) for labels in ("abcd1111", "abcd3333", "xxxxyyyy")] == [4, 4, 8]


def test_of_what_is_larger_than_the_bound_the_beginning_is_kept() -> None:
    cache = PrefillCache(10 * _TOKEN)
    keep(cache, "a" * 30)
    assert cache.known("a" * 30) == 10
    off = PrefillCache(0)
    keep(off, "abc")
    assert (off.known("abc"), off.nbytes) == (0, 0)


def test_what_cannot_be_cut_is_kept_whole_or_not_at_all() -> None:
    """One label for all tokens of an encoder's prompt."""
    cache = PrefillCache(10 * _TOKEN)
    cache.put(["small"], memory("small"))
    cache.put(["too large"], memory("a" * 11))
    count, found = cache.find(["small"])
    assert found is not None
    assert (count, found.length) == (1, 5)
    assert cache.find(["too large"]) == (0, None)


def test_a_continuation_is_kept_only_behind_what_is_known() -> None:
    cache = PrefillCache(1000)
    cache.put("abcdef", memory("abcdef", 3), 3)
    assert cache.known("abcdef") == 0
    keep(cache, "abcd")
    cache.put("abcdef", memory("abcdef", 3), 3)
    count, found = cache.find("abcdef")
    assert found is not None
    assert count == 6
    assert torch.equal(found.kv, memory("abcdef").kv)
    assert cache.nbytes == 6 * _TOKEN


def test_what_was_read_wrongly_goes_with_what_was_read_behind_it() -> None:
    cache = PrefillCache(1000)
    for labels in ("abcd", "abcdef", "abxy"):
        keep(cache, labels)
    cache.discard("abcd")
    assert [cache.known(labels) for labels in ("abcdef", "abxy")] == [2, 4]
    broken = memory("abxyz", 4)
    broken.kv[:] = float("nan")
    cache.put("abxyz", broken, 4)
    cache.put("abxyz12", memory("abxyz12", 5), 5)
    cache.discard("abxyz12")
    assert cache.known("abxyz12") == 4, "from what is not finite on"
    cache.discard("never seen")
    cache.clear()
    assert (cache.known("abxy"), cache.nbytes) == (0, 0)


@pytest.mark.parametrize("bound", [0, 5, 40, 10_000])
def test_random_operations_never_find_what_was_not_put(bound: int) -> None:
    draw, cache = random.Random(bound), PrefillCache(bound * _TOKEN)
    put: set[str] = set()
    for _ in range(600):
        labels = "".join(draw.choices("ab", k=draw.randint(1, 9)))
        action = draw.choice(["put", "put", "find", "find", "discard"])
        if action == "put":
            start = cache.known(labels)
            if start < len(labels):
                cache.put(labels, memory(labels, start), start)
                put.add(labels)
        elif action == "discard" and draw.random() < 0.2:
            cache.discard(labels)
        count, found = cache.find(labels)
        assert count <= max((common(each, labels) for each in put), default=0)
        assert (found is None) == (count == 0)
        assert found is None or torch.equal(found.kv, memory(labels[:count]).kv)
        assert cache.nbytes <= bound * _TOKEN
    assert (cache.nbytes > 0) == (bound > 0)


# -- in the engine -----------------------------------------------------------------------------------------------------


def computed(engine: Engine) -> int:
    return engine.stats.prefill_tokens_computed


def test_the_same_prompt_under_other_weights_skips_the_encoder(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    ids, read = ensemble.encode("i drink"), []
    for weights in (
        {"reflection": 1},
        {"reflection": 0.5, "empathy": 0.5},
        {"empathy": 1},
        {"reflection": 2, "base": 1},
    ):
        before = computed(ensemble.engine)
        ensemble.generate("i drink", weights, max_new_tokens=3)
        read.append((computed(ensemble.engine) - before) // len(ids))
    assert read == [1, 1, 0, 1]
    stats = ensemble.engine.stats
    assert (stats.prefill_hits, stats.prefill_misses) == (3, 3)
    assert stats.prefill_tokens_found == 3 * len(ids)
    assert stats.prefill_cache_bytes == sum(m.nbytes for m in prefilled(ensemble.engine.model, [ids] * 3, [0, 1, 2]))


def test_twins_that_arrive_together_are_read_once() -> None:
    ensemble = fake_ensemble(prefill_cache_bytes=0)
    requests = [ensemble.request("so much", seed=i, max_new_tokens=2) for i in range(5)]
    run(ensemble.engine, requests)
    tokens = len(requests[0].prompt_ids) - (not ensemble.engine.model.new_cache().cross)
    assert computed(ensemble.engine) == 3 * tokens
    assert ensemble.engine.stats.prefill_misses == 3


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
    assert (ensemble.engine.stats.prefill_cache_bytes > 0) == (bound >= 600)


def decoder_only(**options: int) -> Ensemble:
    return fake_ensemble(encoder=False, **options)


def ask(ensemble: Ensemble, ids: Sequence[int], **options: object) -> Request:
    """A request with these tokens."""
    made = ensemble.request("x", max_new_tokens=6, min_new_tokens=6, seed=3, **options)
    return replace(made, prompt_ids=tuple(ids))


def test_a_system_prompt_is_read_once_for_all_that_begin_with_it() -> None:
    """Those that come later find it; those that come together wait for the one that reads it."""
    for together in (False, True):
        ensemble = decoder_only(prefill_cache_bytes=0 if together else 2**20)
        prompts = [[*range(10, 40), 100 + i, 50, 1] for i in range(3)]
        requests = [ask(ensemble, prompt, weights={"empathy": 1.0}) for prompt in prompts]
        done = run(ensemble.engine, requests) if together else alone(ensemble, requests)
        assert computed(ensemble.engine) == 32 + 2 + 2, together
        assert ensemble.engine.stats.prefill_tokens_found == 2 * 30
        assert [said(c) for c in done] == [said(alone(decoder_only(prefill_cache_bytes=0), [r])[0]) for r in requests]


def test_the_next_turn_of_a_chat_computes_only_its_new_tokens() -> None:
    ensemble, history = decoder_only(), [20, 21, 22]
    for _ in range(3):
        before, known = computed(ensemble.engine), len(history)
        history += [60, 61, 1]
        request = ask(ensemble, history)
        (done,) = run(ensemble.engine, [request])
        expected = said(run(decoder_only(prefill_cache_bytes=0).engine, [replace(request, request_id="a")])[0])
        assert said(done)[:3] == expected[:3]
        # The last token of a reply is chosen, and was never fed; the last one of a prompt is fed by the first step.
        new = len(history) - known + (1 if known > 3 else known) - 1
        assert computed(ensemble.engine) - before == 3 * new
        history += done.token_ids


def test_replies_of_a_sweep_are_not_kept() -> None:
    """Thousands of them would push prompts out, and nobody goes on from there."""
    ensemble = decoder_only()
    ensemble.sweep("so much", resolution=4, max_new_tokens=8)
    ids = ensemble.encode("so much")
    assert ensemble.engine.stats.prefill_cache_bytes == 3 * (len(ids) - 1) * 32


def test_a_poisoned_prompt_takes_nothing_else_with_it_and_stays_nowhere() -> None:
    ensemble = decoder_only()
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    sound, bad = ([*range(10, 40), last, 1] for last in (100, 101))
    run(ensemble.engine, [ask(ensemble, sound)])
    model.poisoned = {tuple(bad)}
    ensemble.engine.add(ask(ensemble, bad))
    assert failures(drain(ensemble.engine))
    before = computed(ensemble.engine)
    run(ensemble.engine, [ask(ensemble, sound)])
    assert computed(ensemble.engine) == before
    model.poisoned = set()
    run(ensemble.engine, [ask(ensemble, bad)])
    assert computed(ensemble.engine) == before + 3, "what it did not share is read again, in three lanes"


def test_other_adapters_forget_what_was_read() -> None:
    ensemble = fake_ensemble()
    names = ensemble.engine.model.adapters
    requests = [ensemble.request("so much", max_new_tokens=2, request_id=str(i)) for i in range(2)]
    run(ensemble.engine, requests[:1])
    ensemble.engine.model.attach([Adapter(name, {}) for name in names])
    run(ensemble.engine, requests[1:])
    assert (ensemble.engine.stats.prefill_hits, ensemble.engine.stats.prefill_misses) == (0, 6)


DECODER = {"targets": r"decoder.*\.(q|wo)"}
CROSSING = {"targets": r"decoder.*EncDecAttention\.v"}


def encoder_rows(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the prompts of every encoder pass."""
    rows: list[int] = []
    encode = prompts.encode

    def counted(model: Any, ids: Any, runs: Any, lanes: Any) -> Any:
        if model is ensemble.engine.model:
            rows.append(sum(of_run for of_run, _ in runs))
        return encode(model, ids, runs, lanes)

    monkeypatch.setattr(prompts, "encode", counted)
    return rows


@pytest.mark.parametrize(
    ("second", "third", "passes", "memories"),
    [
        (DECODER, DECODER, 1, 1),
        (DECODER, CROSSING, 1, 2),
        (CROSSING, {}, 2, 3),
    ],
)
def test_lanes_whose_encoder_no_adapter_touches_share_one_pass(
    second: dict[str, str],
    third: dict[str, str],
    passes: int,
    memories: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"reflection": DECODER, "empathy": second, "fluency": third}
    bundle = tiny_t5_bundle(tmp_path, adapter_options=options)
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32")
    rows = encoder_rows(ensemble, monkeypatch)
    mix = {"base": 1, "reflection": 2, "empathy": 2, "fluency": 3}
    done = ensemble.generate("i drink", mix, max_new_tokens=6)
    assert sum(rows) == passes
    ids = ensemble.encode("i drink")
    assert computed(ensemble.engine) == memories * len(ids)
    # The judge: every lane reads for itself.
    apart = Ensemble.load(bundle, device="cpu", dtype="float32")
    monkeypatch.setattr(apart.engine.model, "_reading", (True,) * 3)
    monkeypatch.setattr(apart.engine.model, "encoding", (True,) * 3)
    rows = encoder_rows(apart, monkeypatch)
    assert apart.generate("i drink", mix, max_new_tokens=6).token_ids == done.token_ids
    assert sum(rows) == 4
