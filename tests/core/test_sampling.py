"""Choosing tokens: distributions, filters, penalties, and that a row depends on itself alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.sampling import RowParameters, choose, constrain, gumbel, hash32, noise_key
from emorl_core.types import Request, Sampling
from tests.core.driving import alone, run, said

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0, 1.5, -0.5])


def row(seed: int = 0, position: int = 0, seen: Sequence[int] = (), **options: Any) -> RowParameters:
    return RowParameters(Sampling(**{"temperature": 1.0, **options}), seed, position, seen)


def counts(logits: Tensor, draws: int, **options: Any) -> Tensor:
    """How often each token comes in `draws` independent draws."""
    rows = [row(seed, seed % 7, **options) for seed in range(draws)]
    return choose(logits.expand(draws, -1), rows).bincount(minlength=len(logits)).double()


def chi_square(observed: Tensor, probabilities: Tensor) -> float:
    expected = probabilities.double() * observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())


# 7 degrees of freedom: 0.999 of all samples of the right distribution stay below 24.3. The seeds are fixed, so this
# either always passes or shows a real bias.
LIMIT = 24.3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    observed = counts(LOGITS, 20_000, temperature=temperature)
    assert chi_square(observed, (LOGITS / temperature).softmax(-1)) < LIMIT
    assert chi_square(observed, (LOGITS / temperature * 1.15).softmax(-1)) > LIMIT, "the test must notice a small bias"


@pytest.mark.parametrize("seed", [0, 1, 2**53 - 1, 2**63 - 1])
def test_positions_of_one_seed_are_independent_draws(seed: int) -> None:
    rows = [row(seed, position) for position in range(20_000)]
    ids = choose(LOGITS.expand(len(rows), -1), rows)
    probabilities = LOGITS.softmax(-1)
    assert chi_square(ids.bincount(minlength=8).double(), probabilities) < LIMIT
    pairs = (ids[:-1] * 8 + ids[1:]).bincount(minlength=64).double()
    assert chi_square(pairs, torch.outer(probabilities, probabilities).flatten()) < 103.4  # 63 degrees of freedom


def test_greedy_is_the_largest_logit_whatever_the_seed_and_filters_say() -> None:
    rows = [row(seed, temperature=0.0, top_k=1 + seed, top_p=0.5) for seed in range(5)]
    assert choose(LOGITS.expand(5, -1), rows).tolist() == [0] * 5


@pytest.mark.parametrize("k", [1, 3, 7, 8, 100])
def test_top_k_draws_among_the_k_largest_in_their_proportions(k: int) -> None:
    observed = counts(LOGITS, 20_000, top_k=k)
    kept = LOGITS.sort(descending=True).values[min(k, 8) - 1] <= LOGITS
    probabilities = LOGITS.masked_fill(~kept, -math.inf).softmax(-1)
    assert (observed > 0).tolist() == kept.tolist()
    assert chi_square(observed[kept], probabilities[kept]) < LIMIT


@pytest.mark.parametrize("p", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_against_hf_top_p_draws_among_the_tokens_that_the_library_keeps(p: float) -> None:
    observed = counts(LOGITS, 20_000, top_p=p)
    kept = TopPLogitsWarper(p)(torch.empty(1, 0), LOGITS.unsqueeze(0))[0]
    assert (observed > 0).tolist() == torch.isfinite(kept).tolist()
    assert chi_square(observed[observed > 0], kept.softmax(-1)[observed > 0]) < LIMIT


def test_top_p_counts_within_what_top_k_kept() -> None:
    """As the library's order of warpers does: k first, then p of what is left."""
    top = LOGITS.topk(4)
    probabilities = top.values.softmax(-1)
    p = float(probabilities[:2].sum()) - 1e-3
    observed = counts(LOGITS, 5_000, top_k=4, top_p=p)
    assert set(observed.nonzero().flatten().tolist()) == set(top.indices[:2].tolist())


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_against_hf_repetition_penalty(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, generator=generator) * 3
    seen = [[0, 4, 4, 17], [0, 49], [0]]
    ours = constrain(logits, [row(seen=s, repetition_penalty=penalty) for s in seen], (1,))
    for i, ids in enumerate(seen):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits[i : i + 1].clone())
        assert torch.equal(ours[i : i + 1], expected)


def test_the_end_of_sequence_cannot_come_before_min_new_tokens() -> None:
    logits = LOGITS.expand(3, -1).clone()
    rows = [row(position=p, min_new_tokens=m) for p, m in ((0, 1), (4, 4), (3, 9))]
    out = constrain(logits, rows, (0, 6))
    assert torch.isneginf(out[:, [0, 6]]).tolist() == [[True, True], [False, False], [True, True]]
    assert torch.equal(out[1], LOGITS)
    assert torch.equal(logits, LOGITS.expand(3, -1)), "the given logits stay as they are"


def test_rows_that_ask_for_nothing_are_not_copied() -> None:
    logits = LOGITS.expand(2, -1)
    assert constrain(logits, [row(), row(position=3, min_new_tokens=3)], (1,)) is logits


MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_k": 3},
    {"top_k": 40, "temperature": 1.7},
    {"top_p": 0.5},
    {"top_p": 0.95, "top_k": 17},
    {"top_k": 1000},
]


@pytest.mark.parametrize("kind", ["float32", "bfloat16 values", "all equal"])
def test_a_row_draws_the_same_alone_and_beside_any_neighbours(kind: str) -> None:
    """bfloat16 logits tie all the time: a border among equals must not move with the neighbours' filters."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 500, generator=generator) * 2
    if kind == "bfloat16 values":
        logits = logits.bfloat16().float()
    elif kind == "all equal":
        logits = logits.new_zeros(64, 500)
    rows = [row(i, i % 5, **MIXED[i % len(MIXED)]) for i in range(64)]
    together = choose(logits, rows).tolist()
    alone = [int(choose(logits[i : i + 1], rows[i : i + 1])) for i in range(64)]
    assert together == alone
    order = torch.randperm(64, generator=generator).tolist()
    shuffled = choose(logits[order], [rows[i] for i in order]).tolist()
    assert shuffled == [together[i] for i in order]
    pairs = [choose(logits[[i, j]], [rows[i], rows[j]]).tolist() for i in range(8) for j in range(8, 16)]
    assert pairs == [[together[i], together[j]] for i in range(8) for j in range(8, 16)]


def test_a_seed_repeats_and_others_differ() -> None:
    flat = torch.zeros(1, 1000)
    draws = [int(choose(flat, [row(seed, position)])) for seed in range(20) for position in range(20)]
    assert draws == [int(choose(flat, [row(seed, position)])) for seed in range(20) for position in range(20)]
    assert len(set(draws)) > 300


def test_noise_keys_do_not_collide_for_near_seeds_and_positions() -> None:
    keys = {noise_key(seed, position) for seed in range(300) for position in range(300)}
    assert len(keys) == 300 * 300
    assert all(0 <= key < 2**63 for key in keys)
    assert noise_key(2**63 - 1, 2**31) != noise_key(2**63 - 1, 2**31 + 1)


def test_the_noise_is_standard_gumbel() -> None:
    """Uniform through its own distribution function, in 100 equal bins, over tokens and over keys."""
    for keys, ids in (
        (torch.tensor([noise_key(7, 3)]), torch.arange(50_000).unsqueeze(0)),
        (torch.tensor([noise_key(seed, 0) for seed in range(50_000)]), torch.tensor([[1234]])),
    ):
        noise = gumbel(keys, ids).double().flatten()
        assert torch.isfinite(noise).all()
        uniform = (-(-noise).exp()).exp()
        bins = (uniform * 100).long().clamp(0, 99).bincount(minlength=100).double()
        assert chi_square(bins, torch.full((100,), 0.01)) < 148.2  # 99 degrees of freedom, 0.999
        assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
        assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)


def test_hash32_is_the_published_lowbias32() -> None:
    """Values computed from Wellons' C code by hand in Python integers; and it is a bijection where we look."""

    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    values = [0, 1, 2, 255, 2**31, 2**32 - 1, 123456789]
    assert hash32(torch.tensor(values)).tolist() == [lowbias32(value) for value in values]
    assert len(set(hash32(torch.arange(100_000)).tolist())) == 100_000


def test_rows_of_one_seed_and_position_draw_with_the_same_noise() -> None:
    """As a sweep's members do: each row chooses what it chooses alone."""
    torch.manual_seed(5)
    logits = torch.randn(6, 300)
    rows = [
        RowParameters(Sampling(temperature=1.0), seed, position, ())
        for seed, position in [(1, 2)] * 4 + [(1, 3), (2, 2)]
    ]
    alone = [int(choose(logits[i : i + 1], rows[i : i + 1])) for i in range(len(rows))]
    assert choose(logits, rows).tolist() == alone


@pytest.mark.parametrize("p", [0.02, 0.1, 0.4, 1.0])
def test_against_hf_min_p_draws_among_the_tokens_that_the_library_keeps(p: float) -> None:
    kept = MinPLogitsWarper(p)(torch.zeros(1, 1, dtype=torch.int64), LOGITS.clone().unsqueeze(0))[0]
    observed = counts(LOGITS, 4_000, min_p=p)
    assert [bool(each) for each in observed] == [math.isfinite(each) for each in kept.tolist()]
    if p < 1.0:
        probabilities = kept.softmax(-1)
        kinds = probabilities > 0
        assert chi_square(observed[kinds], probabilities[kinds]) < LIMIT


def test_min_p_is_of_the_tempered_distribution_and_goes_with_the_other_filters() -> None:
    hot = LOGITS / 3.0
    kept = set((hot.softmax(-1) >= 0.3 * hot.softmax(-1).max()).nonzero().flatten().tolist())
    assert {i for i, n in enumerate(counts(LOGITS, 3_000, temperature=3.0, min_p=0.3)) if n} == kept
    both = {i for i, n in enumerate(counts(LOGITS, 3_000, temperature=3.0, min_p=0.3, top_k=2)) if n}
    assert both == kept & set(LOGITS.topk(2).indices.tolist())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_against_hf_runs_that_may_not_repeat(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    for length in (1, 2, 4, 8, 30):
        seen = torch.randint(0, 4, (1, length), generator=draw)
        expected = NoRepeatNGramLogitsProcessor(size)(seen, LOGITS.clone().unsqueeze(0))
        found = constrain(LOGITS.unsqueeze(0), [row(seen=seen[0].tolist(), no_repeat_ngram_size=size)], (7,))
        assert torch.equal(found, expected)


def test_presence_and_frequency_are_taken_from_the_replys_tokens_as_openai_defines_it() -> None:
    """mu[j] - c[j] * frequency - float(c[j] > 0) * presence, with c counted in the reply."""
    prompt, reply = [0, 0, 3], [1, 4, 4, 4, 6]
    for presence, frequency in ((0.7, 0.0), (0.0, 0.3), (-1.5, 2.0), (2.0, -2.0)):
        expected = LOGITS.clone()
        for token in range(len(LOGITS)):
            count = reply.count(token)
            expected[token] -= frequency * count + presence * (count > 0)
        options = {"presence_penalty": presence, "frequency_penalty": frequency}
        found = constrain(LOGITS.unsqueeze(0), [row(position=5, seen=[*prompt, *reply], **options)], (7,))
        assert torch.allclose(found[0], expected)
        nothing = constrain(LOGITS.unsqueeze(0), [row(position=0, seen=prompt, **options)], (7,))
        assert torch.equal(nothing[0], LOGITS)


def test_a_bias_is_added_before_the_repetition_penalty_and_never_lets_the_end_come_early() -> None:
    options: dict[str, Any] = {"logit_bias": ((1, -4.0), (7, 100.0)), "repetition_penalty": 2.0, "min_new_tokens": 3}
    (found,) = constrain(LOGITS.unsqueeze(0), [row(position=2, seen=[1, 2], **options)], (7,))
    assert found[1] == (1.0 - 4.0) * 2.0
    assert found[7] == -math.inf
    (found,) = constrain(LOGITS.unsqueeze(0), [row(position=3, seen=[1, 2, 5], **options)], (7,))
    assert found[7] == LOGITS[7] + 100.0
    assert int(choose(found.unsqueeze(0), [row(temperature=0.0)])) == 7


CONSTRAINED: tuple[dict[str, Any], ...] = (
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {40: 5.0, 300: -100.0}, "temperature": 0.0},
    {"min_p": 0.2},
    {"no_repeat_ngram_size": 2, "temperature": 0.0},
    {"frequency_penalty": 1.5, "min_p": 0.05, "no_repeat_ngram_size": 3, "logit_bias": {"41": 2.0}, "top_k": 30},
)


@pytest.mark.both_shapes
def test_every_way_to_choose_gives_alone_what_it_gives_in_company() -> None:
    def requests(ensemble: Ensemble) -> list[Request]:
        return [
            ensemble.request("so much on my mind", max_new_tokens=14, seed=i, **{"temperature": 1.2, **options})
            for i, options in enumerate((*CONSTRAINED, {}, *CONSTRAINED))
        ]

    company = run(fake_ensemble(slots=16).engine, requests(fake_ensemble()))
    expected = alone(fake_ensemble(slots=1), requests(fake_ensemble()))
    assert [said(each) for each in company] == [said(each) for each in expected]
    pairs = [tuple(done.token_ids[i : i + 2]) for done in company[3:4] for i in range(len(done.token_ids) - 1)]
    assert len(pairs) == len(set(pairs))


@pytest.mark.both_shapes
@pytest.mark.parametrize("options", CONSTRAINED, ids=str)
def test_a_sweep_gives_what_separate_calls_give_though_rays_have_other_scales(options: dict[str, Any]) -> None:
    """What is subtracted from logits weighs less beside larger ones, so greedy multiples are no one request then."""
    vectors = [{"empathy": size * a, "reflection": size} for size in (0.1, 1.0, 10.0) for a in (0.3, 1.0, 3.0)]
    ensemble, settings = fake_ensemble(), {"max_new_tokens": 12, "seed": 4, "normalize": False, **options}
    for more in ({"temperature": 0.0}, {"temperature": 0.9}):
        swept = ensemble.sweep("so much on my mind", vectors, **{**settings, **more})
        texts = [ensemble.generate("so much on my mind", weights=each, **{**settings, **more}).text for each in vectors]
        assert [item.text for item in swept.items] == texts


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("presence_penalty", 2.1, "presence_penalty"),
        ("frequency_penalty", float("nan"), "frequency_penalty"),
        ("min_p", 1.5, "min_p"),
        ("min_p", True, "min_p"),
        ("no_repeat_ngram_size", -1, "no_repeat_ngram_size"),
        ("no_repeat_ngram_size", 1.5, "no_repeat_ngram_size"),
        ("logit_bias", {5: 101.0}, "logit_bias.5"),
        ("logit_bias", {5: "x"}, "logit_bias.5"),
        ("logit_bias", {"five": 1.0}, "logit_bias"),
        ("logit_bias", {-1: 1.0}, "logit_bias"),
        ("logit_bias", {10**6: 1.0}, "logit_bias"),
    ],
)
def test_what_is_out_of_range_is_named(field: str, value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fake_ensemble().request("hi", **{field: value})
    assert caught.value.param == param
    assert "allowed" in caught.value.message


@pytest.mark.parametrize("options", [CONSTRAINED[0], CONSTRAINED[3], {"logit_bias": {5: 1.0}}], ids=str)
def test_segments_take_none_of_it(options: dict[str, Any]) -> None:
    ensemble = fake_ensemble()
    settings = ensemble.request("hi", **{**options, "temperature": 0.0}).sampling
    request = replace(ensemble.segments_request("hi", {"empathy": 1.0}, {"base": 1.0}), sampling=settings)
    with pytest.raises(InvalidRequest, match="without penalties or bias"):
        ensemble.engine.add(request)
