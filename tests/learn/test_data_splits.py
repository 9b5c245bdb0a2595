"""Splits by prompt: no prompt on two sides, the same parts whatever the order of the rows, exact sizes."""

from __future__ import annotations

import random

import pytest

from emorl_core.scorers.words import prompt_key
from tests.learn.real_data import real
from training.data.records import DataError, Record
from training.data.sources import load_records
from training.data.splits import check_disjoint, split_by_prompt


def records(prompts: int, replies: int = 3) -> list[Record]:
    return [Record(f"prompt {p}", f"reply {r}", where=f"f:{p}") for p in range(prompts) for r in range(replies)]


def test_all_records_of_a_prompt_share_a_part_and_sizes_are_exact() -> None:
    splits = split_by_prompt(records(50), seed=3)
    assert {name: len(part) for name, part in splits.items()} == {"train": 120, "validation": 15, "test": 15}
    seen = [{record.prompt for record in part} for part in splits.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 50


def test_the_same_seed_gives_the_same_parts_in_any_order_of_rows() -> None:
    rows = records(40)
    shuffled = random.Random(0).sample(rows, len(rows))
    one, other = split_by_prompt(rows, seed=1), split_by_prompt(shuffled, seed=1)
    for part in one:
        assert set(one[part]) == set(other[part])
    assert one != split_by_prompt(rows, seed=2)


def test_a_new_prompt_moves_at_most_the_borders() -> None:
    before = split_by_prompt(records(100, 1), seed=0)
    after = split_by_prompt(records(101, 1), seed=0)
    moved = sum(record not in after[part] for part, kept in before.items() for record in kept)
    assert moved <= 2, "a reshuffle would move about a third"


def test_prompts_that_differ_only_in_case_spacing_quotes_or_marks_are_one() -> None:
    twins = ["I don't know.", "i  don’t know", "I DON'T KNOW!!"]
    assert len({prompt_key(text) for text in twins}) == 1
    rows = [Record(text, "x") for text in twins] + records(20)
    for seed in range(10):
        splits = split_by_prompt(rows, seed)
        assert sum(any(record.prompt in twins for record in part) for part in splits.values()) == 1


def test_prompts_without_words_are_told_apart() -> None:
    assert prompt_key("?!") != prompt_key("...")


def test_small_parts_still_get_a_prompt_each() -> None:
    splits = split_by_prompt(records(3), seed=0, fractions={"train": 0.98, "validation": 0.01, "test": 0.01})
    assert [len({record.prompt for record in part}) for part in splits.values()] == [1, 1, 1]


def test_a_part_of_fraction_zero_is_empty() -> None:
    splits = split_by_prompt(records(10), seed=0, fractions={"train": 1.0, "test": 0.0})
    assert (len(splits["train"]), len(splits["test"])) == (30, 0)


@pytest.mark.parametrize("count", [3, 7, 10, 99, 256, 1001])
@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.25, 0.25), (0.98, 0.01, 0.01)])
def test_every_prompt_lands_in_a_part(count: int, fractions: tuple[float, ...]) -> None:
    names = dict(zip(("train", "validation", "test"), fractions, strict=True))
    splits = split_by_prompt(records(count, 1), seed=0, fractions=names)
    assert sum(map(len, splits.values())) == count
    for name, fraction in names.items():
        assert abs(len(splits[name]) - max(1, fraction * count)) <= 2


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.5, "test": 0.4}, r"sum to 0\.9"),
        ({"train": 1.2, "test": -0.2}, "finite numbers from 0"),
        ({"train": float("nan")}, "finite numbers from 0"),
        ({}, "finite numbers from 0"),
    ],
)
def test_fractions_that_are_none_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_by_prompt(records(10), seed=0, fractions=fractions)


def test_fewer_prompts_than_parts_are_refused() -> None:
    with pytest.raises(DataError, match="2 distinct prompts cannot fill 3 parts"):
        split_by_prompt(records(2), seed=0)


def test_a_prompt_in_two_parts_is_found_and_named_by_its_rows_only() -> None:
    with pytest.raises(DataError, match=r"1 records share .*first: b:9 in 'test' and a:1 in 'train'") as caught:
        check_disjoint({"train": [Record("A secret.", where="a:1")], "test": [Record("a secret", where="b:9")]})
    assert "secret" not in caught.value.message


def test_real_prompts_split_without_overlap() -> None:
    loaded = load_records({"kind": "pair", "path": str(real("pair/pair.csv")), "view": "graded"})
    splits = split_by_prompt(loaded.records, seed=0)
    assert {name: len(part) for name, part in splits.items()} == {"train": 1640, "validation": 208, "test": 200}
