"""Parts of a recipe's data: no dialogue and no prompt on two sides, and the same mix of sources in each."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from emorl_core.scorers.words import prompt_key
from tests.learn.trainer_tasks import tiny_recipe
from training.data.parts import split_sources
from training.data.records import DIALOGUE, DataError, Record
from training.data.splits import Splits, check_disjoint, split_by_prompt
from training.pipeline.base import warm_start_records
from training.pipeline.prepare import load_data
from training.recipe.recipe import WarmStart

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def plain(name: str, count: int, replies: int = 1) -> list[Record]:
    return [Record(f"{name} {i}", f"reply {r}", where=f"{name}:{i}") for i in range(count) for r in range(replies)]


def talks(name: str, count: int, seed: int = 0) -> list[Record]:
    """Dialogues of one to nine prompts."""
    draw = random.Random(seed)
    return [
        Record(f"{name} {talk} {turn}", "yes", where=f"{name}:{talk}", extras={DIALOGUE: f"{name} {talk}"})
        for talk in range(count)
        for turn in range(draw.randint(1, 9))
    ]


def dialogues(records: tuple[Record, ...]) -> set[str]:
    return {record.extras[DIALOGUE] for record in records if DIALOGUE in record.extras}


def sources(records: tuple[Record, ...]) -> Counter[str]:
    return Counter(record.prompt.split()[0] for record in records)


def test_one_source_without_dialogues_is_split_as_by_prompt() -> None:
    """What was split before there were dialogues is split the same, so runs of it go on."""
    for seed in range(5):
        records = plain("a", 57, replies=2)
        assert split_sources([records], seed) == split_by_prompt(records, seed)


@pytest.mark.parametrize("seed", range(5))
def test_no_dialogue_is_in_two_parts_and_sizes_are_near_their_shares(seed: int) -> None:
    records = talks("talk", 100)
    splits = split_sources([records], seed)
    named = [dialogues(part) for part in splits.values()]
    assert sum(map(len, named)) == len(set().union(*named)) == 100
    assert sum(map(len, splits.values())) == len(records)
    for name, fraction in FRACTIONS.items():
        assert abs(len(splits[name]) - fraction * len(records)) <= 9, "one dialogue"


@pytest.mark.parametrize("seed", range(5))
def test_validation_and_test_have_the_mix_of_sources_and_so_have_their_first_prompts(seed: int) -> None:
    given = [plain("one", 250), talks("two", 60), plain("three", 1000)]
    splits = split_sources(given, seed)
    whole = sources(tuple(record for own in given for record in own))
    for part in (*splits.values(), splits["validation"][:40], splits["test"][:40]):
        found = sources(part)
        for name, count in whole.items():
            assert found[name] / len(part) == pytest.approx(count / whole.total(), abs=0.06), (part[0].where, name)
    for part in splits.values():
        own = [record for record in part if record.prompt.startswith("three")]
        assert own == [record for record in given[2] if record in own], "a source's records keep their order"


def test_dialogues_that_share_a_prompt_stay_together_across_sources() -> None:
    shared = [
        Record("I said it twice.", extras={DIALOGUE: "a"}),
        Record("i said it twice", extras={DIALOGUE: "b"}),
        Record("I said it twice!"),
    ]
    more = [Record(f"more {name}", extras={DIALOGUE: name}) for name in "ab"]
    for seed in range(20):
        splits = split_sources([[*shared[:2], *more, *plain("x", 30)], [shared[2], *plain("y", 30)]], seed)
        holding = [part for part in splits.values() if any(record in part for record in (*shared, *more))]
        assert len(holding) == 1
        check_disjoint(splits)


def test_the_order_of_rows_does_not_decide() -> None:
    records = [*talks("talk", 40), *plain("x", 40)]
    shuffled = random.Random(1).sample(records, len(records))
    one, other = split_sources([records], 3), split_sources([shuffled], 3)
    assert {part: set(own) for part, own in one.items()} == {part: set(own) for part, own in other.items()}


def test_a_source_too_small_for_every_part_goes_with_the_largest() -> None:
    splits = split_sources([plain("few", 2), plain("many", 50)], 0)
    assert sum(map(len, splits.values())) == 52
    assert all(splits.values())


def test_every_part_gets_a_dialogue_however_long_they_are() -> None:
    long = [Record(f"{talk} {turn}", extras={DIALOGUE: str(talk)}) for talk in range(3) for turn in range(50)]
    for seed in range(10):
        assert all(len(dialogues(part)) == 1 for part in split_sources([long], seed).values())
    with pytest.raises(DataError, match="2 distinct prompts or dialogues cannot fill 3 parts"):
        split_sources([long[:100]], 0)


def test_a_dialogue_in_two_parts_is_refused_by_its_rows() -> None:
    parts: Splits = {
        "train": (Record("A secret.", where="a:1", extras={DIALOGUE: "x"}),),
        "test": (Record("Another secret.", where="a:9", extras={DIALOGUE: "x"}),),
    }
    with pytest.raises(
        DataError, match=r"1 records share their prompt or dialogue .*: a:9 in 'test' and a:1 in 'train'"
    ):
        check_disjoint(parts)


def row(talk: int, turn: int) -> dict[str, Any]:
    return {"prompt": f"talk {talk} turn {turn}", "reply": "yes", "dialogue": f"d{talk}"}


def test_rows_of_ones_own_name_their_dialogue_in_a_column(tmp_path: Path) -> None:
    """And neither the base nor anything else is fitted on the rest of a dialogue that tests."""
    lines = [json.dumps(row(talk, turn)) for talk in range(30) for turn in range(6)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    source = {"kind": "jsonl", "path": "talks.jsonl", "response": "reply", "extras": ["dialogue"]}
    data = load_data(tiny_recipe(data={"sources": [source], "max_prompts": 150}), tmp_path)
    found = {name: dialogues(part) for name, part in data.parts.items()}
    assert sum(map(len, found.values())) == 25, "150 prompts are 25 dialogues"
    held = found["validation"] | found["test"]
    assert not held & found["train"]
    start = WarmStart.model_validate({"path": "base", "sources": [source]})
    fitted = warm_start_records(start, tmp_path, data, None)
    assert len(fitted) == 180 - 6 * len(held)
    assert not {record.extras[DIALOGUE] for record in fitted} & held
    assert not {prompt_key(record.prompt) for record in fitted} & {
        prompt_key(record.prompt) for part in ("validation", "test") for record in data.parts[part]
    }
