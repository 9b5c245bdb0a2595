"""The exchanges that the project wrote: whole texts in three manners, each with its form, and the same fillings for all."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from emorl_core.scorers.words import prompt_key
from training.data.exchanges.source import ExchangesSource, Manner, tables
from training.data.records import Record
from training.data.sources import load_records
from training.data.synthetic.slots import SLOT

MANNERS: tuple[Manner, ...] = ("reflection", "empathy", "plain")
STATEMENTS = (Path(__file__).parents[2] / "docs" / "demo-statements.txt").read_text(encoding="utf-8").splitlines()
ADVICE = re.compile(r"(^|[.!;] )(you should|you could(?! have)|try|maybe you could|why not|have you)\b", re.IGNORECASE)


def records(manner: Manner, **options: int) -> tuple[Record, ...]:
    return ExchangesSource(manner=manner, **options).load().records


def test_every_exchange_has_a_reply_in_each_manner_and_fills_only_what_the_client_names() -> None:
    sets, exchanges = tables()
    assert len(exchanges) > 1500
    for number, exchange in exchanges.items():
        assert set(exchange) == {"client", *MANNERS}, number
        named = {match.group(1) for match in SLOT.finditer(exchange["client"])}
        assert named <= sets.keys(), number
        for manner in MANNERS:
            assert {match.group(1) for match in SLOT.finditer(exchange[manner])} <= named, (number, manner)


@pytest.mark.parametrize("manner", MANNERS)
def test_texts_are_whole_sentences_without_questions_or_advice(manner: Manner) -> None:
    for record in records(manner):
        reply = record.response or ""
        for text in (record.prompt, reply):
            assert text[0].isupper(), record.where
            assert text.rstrip('"')[-1] in ".!?", record.where
            assert not set(text) & set("{}_"), record.where
            assert not re.search(r"[.!?] [a-z]", text), record.where
        assert "?" not in reply, record.where
        assert not ADVICE.search(reply), record.where


def test_the_manners_differ_in_length_and_none_begins_all_replies_alike() -> None:
    words = {manner: [len((r.response or "").split()) for r in records(manner)] for manner in MANNERS}
    assert max(words["plain"]) <= 14
    assert max(words["reflection"]) <= 28
    means = {manner: sum(own) / len(own) for manner, own in words.items()}
    assert means["plain"] < 0.6 * means["reflection"]
    for manner in MANNERS:
        starts = Counter(" ".join((r.response or "").split()[:2]) for r in records(manner))
        assert starts.most_common(1)[0][1] < 0.2 * starts.total(), starts.most_common(3)


def test_prompts_are_distinct_and_none_is_one_that_the_demo_is_judged_by() -> None:
    found = records("reflection", variants=4)
    keys = [prompt_key(record.prompt) for record in found]
    assert len(keys) == len(set(keys))
    assert len(STATEMENTS) == 60
    assert not set(keys) & set(map(prompt_key, STATEMENTS))
    assert len(found) > len(records("reflection", variants=1)) == len(tables()[1])


def test_all_manners_answer_the_same_prompts_and_a_seed_gives_the_same_ones() -> None:
    prompts = {manner: [r.prompt for r in records(manner, seed=3)] for manner in MANNERS}
    assert prompts["reflection"] == prompts["empathy"] == prompts["plain"]
    assert prompts["plain"] == [r.prompt for r in records("plain", seed=3)]
    assert prompts["plain"] != [r.prompt for r in records("plain", seed=4)]
    bare = load_records({"kind": "exchanges", "view": "prompts", "seed": 3})
    assert [record.prompt for record in bare] == prompts["plain"]
    assert {record.response for record in bare} == {None}
    assert len({record.extras["key"] for record in bare}) == len(tables()[1])
