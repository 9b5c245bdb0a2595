"""Drafts: good and different texts out of one sweep, each the text of a plain request with its weights and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from emorl_core.bundles.bundle import ChatSpec
from emorl_core.drafts.choosing import distance, features, pick
from emorl_core.drafts.plan import MAX_COUNT, Wanted, mean_shares
from emorl_core.drafts.spread import spread
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import Checked
from emorl_core.types import Attribution
from tests.core.conftest import PROMPTS

PROMPT = "I feel tired of work"
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "greedy": {"temperature": 0.0, "candidates": 16},
    "four seeds": {"temperature": 0.8, "top_p": 1.0, "seed": 7, "seeds": 4},
    "mixed probabilities": {"combine": "probs"},
    "summed adapters": {"combine": "weights"},
    "a penalty": {"presence_penalty": 0.5},
}


def scored(**scorers: Any) -> Ensemble:
    """scorers: text -> score, by name."""
    ensemble = fake_ensemble()

    def made(name: str, judge: Any) -> Checked:
        def scorer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            assert set(prompts) == {PROMPT}
            return [judge(text) for text in completions]

        scorer.__name__ = name
        return Checked(scorer)

    ensemble.scorers = {name: None if judge is None else made(name, judge) for name, judge in scorers.items()}
    return ensemble


# --- the texts are those of plain requests -----------------------------------------------------------------------------


def alone(ensemble: Ensemble, prompt: str, draft: Any, **options: Any) -> Any:
    """The plain request that a draft says it is the text of."""
    of_drafts = ("seeds", "seed", "candidates", "temperature")
    options = {name: value for name, value in {"top_p": 0.9, **options}.items() if name not in of_drafts}
    own = {"seed": draft.completion.seed, "temperature": draft.temperature}
    return ensemble.generate(prompt, draft.weights, **own, **options)


@pytest.mark.parametrize("way", WAYS)
def test_each_draft_has_the_tokens_of_a_request_with_its_weights(way: str) -> None:
    ensemble = fake_ensemble()
    found = ensemble.drafts(PROMPT, count=MAX_COUNT, min_distance=0.0, max_new_tokens=16, **WAYS[way])
    assert len(found.drafts) == min(MAX_COUNT, found.distinct) > 3
    assert len({draft.text for draft in found.drafts}) == len(found.drafts)
    for draft in found.drafts:
        assert draft.completion.token_ids == alone(ensemble, PROMPT, draft, max_new_tokens=16, **WAYS[way]).token_ids


def test_most_likely_and_drawn_texts_are_looked_at_and_the_same_ones_again() -> None:
    ensemble = fake_ensemble()
    options: dict[str, Any] = {"count": MAX_COUNT, "min_distance": 0.0, "max_new_tokens": 16}
    found = ensemble.drafts(PROMPT, **options)
    assert (found.candidates, found.seed) == (8 + 3 * 16, 0)
    drawn = [draft for draft in found.drafts if draft.temperature]
    assert 0 < len(drawn) < len(found.drafts)
    assert {draft.temperature for draft in found.drafts} == {0.0, 0.7}
    assert len({draft.completion.seed for draft in drawn}) > 1
    assert {draft.completion.seed for draft in drawn} <= set(range(16))
    assert all(max(draft.weights.values()) == 1.0 for draft in drawn), "from one objective each"
    again = fake_ensemble().drafts(PROMPT, **options)
    assert [draft.text for draft in again.drafts] == [draft.text for draft in found.drafts]
    other = ensemble.drafts(PROMPT, seed=2, **options)
    assert {draft.text for draft in other.drafts if draft.temperature} != {
        draft.text for draft in found.drafts if draft.temperature
    }
    few = ensemble.drafts(PROMPT, temperature=0.0, **options)
    assert few.candidates == 8
    assert {draft.temperature for draft in few.drafts} == {0.0}


def test_the_profiles_of_the_bundle_are_looked_at_and_those_that_were_learned_are_not() -> None:
    ensemble = fake_ensemble()
    ensemble.learned = {"ward-9": ensemble.spec.profiles["balanced"]}
    plan = ensemble.drafts_plan(PROMPT)
    looked_at = {request.profile for request in plan.requests}
    assert looked_at == {None, *ensemble.spec.profiles}


def test_the_centre_of_a_draft_is_the_mean_of_all_weights_that_give_it() -> None:
    ensemble = fake_ensemble()
    wide: dict[str, Any] = {"candidates": 16, "temperature": 0.0}
    found = ensemble.drafts(PROMPT, count=MAX_COUNT, min_distance=0.0, max_new_tokens=3, **wide)
    plan = ensemble.drafts_plan(PROMPT, wanted=Wanted(candidates=16), temperature=0.0)
    looked_at = [each.as_dict() for each in plan.sweep.vectors]
    assert max(draft.given_by for draft in found.drafts) > 1
    for draft in found.drafts:
        giving = [own for own in looked_at if ensemble.generate(PROMPT, own, max_new_tokens=3).text == draft.text]
        assert len(giving) == draft.given_by
        for name, weight in draft.centre.items():
            assert weight == pytest.approx(sum(own[name] for own in giving) / len(giving))


def test_a_real_model_gives_the_tokens_of_plain_requests_at_a_lower_cost(ensemble: Ensemble) -> None:
    found = ensemble.drafts(PROMPTS[0], candidates=8, min_distance=0.0, max_new_tokens=8)
    for draft in found.drafts:
        assert draft.completion.token_ids == alone(ensemble, PROMPTS[0], draft, max_new_tokens=8).token_ids
    assert found.lane_row_steps < found.unshared_lane_row_steps


def test_a_chat_is_drafted_for_and_scored_by_what_was_said_last() -> None:
    ensemble = fake_ensemble(chat=ChatSpec())
    ensemble.scorers = scored(short=lambda text: 1 / (1 + len(text))).scorers
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    chat += [{"role": "user", "content": PROMPT}]
    found = ensemble.drafts(messages=chat)
    assert found.ranked_by == "scores"
    best = found.drafts[0]
    own = {"temperature": best.temperature, "seed": best.completion.seed, "top_p": 0.9}
    assert best.text == ensemble.generate(messages=chat, weights=best.weights, **own).text


# --- what is said about them -------------------------------------------------------------------------------------------


def test_drafts_are_ranked_by_the_mean_of_the_scorers() -> None:
    ensemble = scored(long=lambda text: min(1.0, len(text) / 200), calm=lambda text: float("?" not in text), code=None)
    found = ensemble.drafts(PROMPT, count=4, temperature=0.0)
    means = [draft.mean for draft in found.drafts]
    assert found.ranked_by == "scores"
    assert means == sorted(means, reverse=True)
    for draft in found.drafts:
        long, calm = round(min(1.0, len(draft.text) / 200), 6), float("?" not in draft.text)
        assert draft.scores == {"long": long, "calm": calm, "code": None}
        assert draft.mean == pytest.approx((long + calm) / 2)
    plan = ensemble.drafts_plan(PROMPT, temperature=0.0)
    every = ensemble.sweep(PROMPT, [each.as_dict() for each in plan.sweep.vectors])
    best = max(min(1.0, len(text) / 200) + float("?" not in text) for text in every.distinct(0))
    assert means[0] == pytest.approx(best / 2)


def test_without_scorers_they_are_ranked_by_likelihood_which_is_said() -> None:
    ensemble = fake_ensemble()
    found = ensemble.drafts(PROMPT)
    assert found.ranked_by == "likelihood"
    assert [draft.scores for draft in found.drafts] == [{}] * 3
    likelihoods = [draft.likelihood for draft in found.drafts]
    assert likelihoods == sorted(likelihoods, reverse=True)
    for draft in found.drafts:
        logprobs = alone(ensemble, PROMPT, draft).logprobs
        assert draft.likelihood == pytest.approx(float(np.exp(np.mean(logprobs))), rel=1e-5)


def test_a_text_that_misses_a_score_comes_last_and_a_scorer_without_any_does_not_count() -> None:
    ensemble = fake_ensemble()
    plan = ensemble.drafts_plan(PROMPT, wanted=Wanted(min_distance=0.0, diversity=0.9))
    for completion in ensemble._driver.finish(plan.requests, together=True):
        plan.take(completion)
    texts = plan.texts()
    scores: list[dict[str, float | None]] = [{"good": 0.1, "dead": None} for _ in texts]
    scores[0] = {"good": None, "dead": None}
    scores[3] = {"good": 0.9, "dead": None}
    found = plan.choose(scores)
    assert found.ranked_by == "scores"
    assert (found.drafts[0].text, found.drafts[0].mean) == (texts[3], 0.9)
    assert texts[0] not in [draft.text for draft in found.drafts]
    assert plan.choose([{"good": None}] * len(texts)).ranked_by == "likelihood"


def test_shares_are_those_of_the_tokens_and_left_out_where_nothing_is_split() -> None:
    ensemble = fake_ensemble()
    for draft in ensemble.drafts(PROMPT).drafts:
        told = alone(ensemble, PROMPT, draft, attribution=True)
        assert draft.shares == pytest.approx(mean_shares(told.attributions, ensemble.lanes))
        assert draft.shares is not None
        assert sum(draft.shares.values()) == pytest.approx(1.0)
    assert [draft.shares for draft in ensemble.drafts(PROMPT, combine="probs").drafts] == [None] * 3


def test_the_mean_of_shares_is_over_the_tokens_that_something_spoke_for() -> None:
    parts = [(0.0, 3.0, 1.0), (0.0, -1.0, 2.0), (0.0, -1.0, -2.0)]
    attributions = [Attribution(sum(each), each, 5) for each in parts]
    assert mean_shares(attributions, ("base", "warm", "plain")) == {"warm": 0.375, "plain": 0.625}
    assert mean_shares(attributions[2:], ("base", "warm", "plain")) is None


# --- which weights are looked at -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7, 16, 40])
def test_the_spread_has_the_profile_the_corners_and_equal_weights_first(count: int) -> None:
    names, profile = ("a", "b", "c"), {"a": 0.5, "b": 0.4, "c": 0.1}
    found = spread(names, count, profile)
    known = [profile, {"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0}, {"a": 0.0, "b": 0.0, "c": 1.0}]
    assert found[:4] == known[:count]
    assert len(found) == count
    vectors = np.array([[each[name] for name in names] for each in found])
    assert np.allclose(vectors.sum(axis=1), 1.0)
    assert len(np.unique(vectors.round(6), axis=0)) == count
    if count > 4:
        assert found[4] == pytest.approx(dict.fromkeys(names, 1 / 3))


def test_a_spread_has_no_weights_twice_and_ends_where_there_are_no_more() -> None:
    assert spread(("a",), 9, {"a": 1.0}) == [{"a": 1.0}]
    assert spread(("a", "b"), 3, {"a": 0.5, "b": 0.5}) == [
        {"a": 0.5, "b": 0.5},
        {"a": 1.0, "b": 0.0},
        {"a": 0.0, "b": 1.0},
    ]
    many = [str(number) for number in range(100)]
    assert len(spread(many, 256)) == 101
    profile, other = {"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}
    assert spread(("a", "b"), 4, profile, [other, profile])[3] == other
    assert spread(("a", "b"), 5, {"base": 0.5, "a": 0.5})[0] == {"base": 0.5, "a": 0.5}


# --- which texts are shown -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "far"),
    [
        ("You feel tired.", "you feel TIRED", 0.0),
        ("", "?!", 0.0),
        ("You feel tired.", "", 1.0),
        ("one two", "three four", 1.0),
        ("one two", "two one", 0.5),
        ("a b c d", "a b c e", 4 / 9),
    ],
)
def test_distance_is_the_share_of_words_and_pairs_that_only_one_text_has(first: str, second: str, far: float) -> None:
    assert distance(features(first), features(second)) == pytest.approx(far)
    assert distance(features(second), features(first)) == pytest.approx(far)


def picked(texts: Sequence[str], worth: Sequence[float | None], count: int = 3, **options: float) -> list[int]:
    return pick(texts, worth, count, **{"diversity": 0.3, "min_distance": 0.3, **options})


def test_the_worthiest_comes_first_and_its_near_duplicates_not_at_all() -> None:
    texts = ["You feel worn out by all of this work.", "You feel worn out by all this work.", "Work is a lot.", "Rest."]
    assert picked(texts, [0.9, 0.89, 0.2, 0.1]) == [0, 2, 3]
    assert picked(texts, [0.9, 0.89, 0.2, 0.1], min_distance=0.0, diversity=0.0) == [0, 1, 2]
    assert picked(texts[:2], [0.5, 0.6]) == [1]


def test_diversity_trades_worth_for_distance() -> None:
    texts = ["work is too much for you now", "work is too much for you at home", "you miss her"]
    assert picked(texts, [0.9, 0.85, 0.6], 2, diversity=0.0) == [0, 1]
    assert picked(texts, [0.9, 0.85, 0.6], 2, diversity=0.8) == [0, 2]


def test_texts_of_unknown_worth_come_after_all_others() -> None:
    texts = ["one", "two", "three", "four"]
    assert picked(texts, [None, 0.0, None, 0.1], 4, diversity=1.0) == [3, 1, 0, 2]


def test_empty_texts_are_no_drafts_unless_there_is_nothing_else() -> None:
    ensemble = fake_ensemble()
    plan = ensemble.drafts_plan(PROMPT, wanted=Wanted(candidates=2), temperature=0.0)
    blank, whole = ensemble._driver.finish(plan.requests, together=True)
    object.__setattr__(blank, "text", " ")
    for completion in (blank, whole):
        plan.take(completion)
    assert plan.texts() == [whole.text]
    assert [draft.text for draft in plan.choose(None).drafts] == [whole.text]


# --- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"count": 0}, "count"),
        ({"count": MAX_COUNT + 1}, "count"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": 10**9}, "candidates"),
        ({"candidates": True}, "candidates"),
        ({"seeds": 2, "temperature": 0.0}, "seeds"),
        ({"seeds": -1}, "seeds"),
        ({"seeds": True}, "seeds"),
        ({"seeds": 65, "temperature": 1.0}, "seeds"),
        ({"candidates": 100, "seeds": 10, "temperature": 1.0, "max_sweep": 129}, "candidates"),
        ({"diversity": 1.1}, "diversity"),
        ({"min_distance": float("nan")}, "min_distance"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"combine": "sum"}, "combine"),
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_bad_input_is_named_before_anything_runs(options: dict[str, Any], param: str) -> None:
    ensemble = fake_ensemble()
    with pytest.raises(InvalidRequest) as error:
        ensemble.drafts(PROMPT, **options)
    assert error.value.param == param
    assert not ensemble.engine.has_work
