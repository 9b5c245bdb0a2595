"""Rules that spoil a reply: what each one writes, word for word."""

from __future__ import annotations

import random

import pytest

from training.data.corruptions import CORRUPTIONS, corrupt
from training.data.phrases import ADVICE, BLAME, FLATTERY, STOCK, stock_phrases
from training.data.roles import agent_and_object, you_and_i

PROMPT = "My boss shouts at me. I can't sleep any more."
REPLY = "You are exhausted because your boss shouts at you."


def spoilt(name: str, reply: str = REPLY, *, held_out: bool = True, seed: int = 0) -> str | None:
    return corrupt(name, PROMPT, reply, random.Random(seed), held_out=held_out)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("You are worried about your son.", "I am worried about my son."),
        ("You're tired, and you've tried it all yourself.", "I'm tired, and I've tried it all myself."),
        ("Your wife hurts you.", "My wife hurts me."),
        ("I hear that my words upset you.", "You hear that your words upset me."),
        ("It’s hard when you were alone.", "It's hard when I was alone."),
        ("Money is tight.", None),
    ],
)
def test_you_and_i_change_places(reply: str, expected: str | None) -> None:
    assert you_and_i(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Your boss shouts at you.", "You shout at your boss."),
        ("You love your mother.", "Your mother loves you."),
        ("You really trust your friends.", "Your friends really trust you."),
        ("He doesn't listen to you.", "You don't listen to him."),
        ("You are afraid for your daughter.", "Your daughter is afraid for you."),
        ("You're angry with them.", "They are angry with you."),
        ("You are tired.", None),
        ("Your mother is ill.", None),
    ],
)
def test_agent_and_object_change_places(reply: str, expected: str | None) -> None:
    assert agent_and_object(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("You don't trust doctors.", "You trust doctors."),
        ("You can't do it alone.", "You can do it alone."),
        ("You never sleep.", "You always sleep."),
        ("You are tired.", "You are not tired."),
        ("You want a change.", "You don't want a change."),
        ("Money!", None),
    ],
)
def test_a_statement_becomes_its_opposite(reply: str, expected: str | None) -> None:
    assert spoilt("negated", reply) == expected


def test_a_reply_is_cut_repeated_copied_and_shuffled() -> None:
    assert spoilt("cut in half") == "You are exhausted because"
    assert spoilt("repeated") == f"{REPLY} {REPLY}"
    assert spoilt("copied prompt") == PROMPT
    mixed = spoilt("words shuffled")
    assert mixed is not None
    assert mixed != REPLY
    assert sorted(mixed.split()) == sorted(REPLY.split())
    for name in ("cut in half", "repeated", "words shuffled"):
        assert spoilt(name, "Too short.") is None


@pytest.mark.parametrize(
    ("name", "phrases"), [("with blame", BLAME), ("advice appended", ADVICE), ("flattery", FLATTERY)]
)
def test_phrases_of_the_exam_are_never_trained_with(name: str, phrases: object) -> None:
    assert not set(phrases.trained) & set(phrases.held_out)  # type: ignore[attr-defined]
    for held_out in (True, False):
        for seed in range(20):
            made = spoilt(name, held_out=held_out, seed=seed)
            assert made is not None
            assert REPLY in made
            rest = made.replace(REPLY, "").strip()
            assert rest in phrases.of(held_out=held_out)  # type: ignore[attr-defined]


def test_what_is_added_stands_behind_a_full_stop() -> None:
    assert (spoilt("advice appended", "You are tired") or "").startswith("You are tired. ")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_rule_repeats_from_its_seed_and_changes_the_reply(name: str) -> None:
    for held_out in (True, False):
        for seed in range(10):
            made = spoilt(name, held_out=held_out, seed=seed)
            assert made == spoilt(name, held_out=held_out, seed=seed)
            assert made != REPLY


def test_stock_phrases_are_many_and_not_those_of_the_exam() -> None:
    made = list(stock_phrases())
    assert len(set(made)) == len(made) > 200
    assert not set(made) & set(STOCK)
