"""The exam of a scorer, on scorers whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from emorl_core.scorers import Checked, ScorerError, checked
from training.data.records import DIALOGUE, DataError, Record, RecordSet
from training.scorers.exam import figures
from training.scorers.exam.constants import candidates_of, search_constants
from training.scorers.exam.examine import CLASSES, LENGTH, LEVELS, ExamSettings, examine
from training.scorers.exam.material import parts_of
from training.scorers.exam.nearest import nearest
from training.scorers.exam.pairs import CONSTANT, MATCHED, NEAR, OWN
from training.scorers.exam.report import markdown_lines, text_lines

CLIENTS = 10  # in the test part of `graded`
THINGS = "work boss sleep drink doctor mother home school money dog garden car river piano letter window".split()


def graded(clients: int = 48) -> RecordSet:
    """High names the client's thing, medium a feeling only, low is a question."""
    records = []
    for number in range(clients):
        thing, word = THINGS[number % len(THINGS)], f"number{number}"
        prompt = f"I worry about my {thing} and about {word} every day."
        for reply, level in (
            (f"You worry about your {thing} and {word} all the time.", 2.0),
            ("You worry.", 1.0),
            ("Why not go on a trip then?", 0.0),
        ):
            records.append(Record(prompt, reply, level, where=f"g:{number}"))
    return RecordSet("graded", tuple(records), len(records))


def scorer_of(rule: Callable[[str, str], float], name: str = "rule") -> Checked:
    class Rule:
        __name__ = name

        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            return [rule(prompt, reply) for prompt, reply in zip(prompts, completions, strict=True)]

    return checked(Rule())


def ideal(prompt: str, reply: str) -> float:
    """1 for what `graded` calls high, less for medium, 0 for anything else."""
    client = dict(zip(("thing", "word"), (prompt.split()[4], prompt.split()[7]), strict=True))
    if reply == f"You worry about your {client['thing']} and {client['word']} all the time.":
        return 1.0
    return 0.5 if reply == "You worry." else 0.0


def by_length(prompt: str, reply: str) -> float:
    return min(1.0, len(reply.split()) / 100)


def rows_of(scorer: Checked, *data: RecordSet) -> dict[str, Any]:
    found = examine(scorer, [parts_of(each, 0) for each in data]).as_dict()
    assert json.loads(json.dumps(found)) == found
    return {row["row"]: row for row in found["rows"]} | {"all": found}


def test_who_knows_it_all_passes_everything() -> None:
    rows = rows_of(scorer_of(ideal), graded())
    for name in (CONSTANT, OWN, NEAR, "high over medium", "medium over low", "own over negated", "own over repeated"):
        assert rows[name]["value"] == 1.0, name
        assert (rows[name]["low"], rows[name]["high"]) == (1.0, 1.0)
    assert rows["high over medium"]["count"] == rows["high over medium"]["clusters"] == CLIENTS, "a fifth of 48 clients"
    (constant,) = rows["all"]["constants"]
    assert constant["human"] == 1.0
    assert constant["mean"] == 0.5, "the medium reply is the same for everybody"
    assert LEVELS in rows["all"]["left_out"], "PAIR's levels are within a prompt"


def test_who_counts_words_is_found_out() -> None:
    rows = rows_of(scorer_of(by_length), graded())
    assert rows["high over medium"]["value"] == rows["high over medium"]["by_length"] == 1.0
    assert rows["medium over low"]["value"] == 0.0
    assert rows["own over repeated"]["value"] == 0.0
    assert rows["own over cut in half"]["value"] == 1.0
    assert rows[OWN]["value"] == 0.5, "replies of one form are as long: ties count half"
    assert rows[LENGTH]["value"] == pytest.approx(1.0)
    assert rows[CONSTANT]["value"] == 0.0, "the longest stock phrase beats everybody"
    assert f"high over medium{MATCHED}" in rows["all"]["left_out"], "no medium reply is as long as a high one"


def test_who_answers_the_same_to_everything_learns_nothing_by_it() -> None:
    rows = rows_of(scorer_of(lambda prompt, reply: 0.3), graded())
    assert {row["value"] for name, row in rows.items() if name not in ("all", LENGTH)} == {0.5}
    assert rows[LENGTH]["value"] is None
    assert "none: all are equal" in "\n".join(text_lines(rows["all"]))


def dialogues() -> RecordSet:
    """Thirty dialogues of two turns; half of the turns are reflections, which say "you"."""
    records = []
    for number in range(60):
        reflects = number % 2 == 0
        reply = f"So you miss item{number} now." if reflects else f"What about the item{number} then?"
        extras = {DIALOGUE: f"d {number // 2}"}
        records.append(
            Record(f"I lost my item{number} again.", reply, float(reflects), where=f"d:{number}", extras=extras)
        )
    return RecordSet("dialogues", tuple(records), 60)


def test_levels_across_prompts_by_dialogue() -> None:
    rows = rows_of(scorer_of(lambda prompt, reply: 0.9 if " you " in reply else 0.2), dialogues())
    assert rows[LEVELS]["value"] == 1.0
    assert (rows[LEVELS]["measure"], rows[CLASSES]["measure"]) == ("AUC", "macro-F1")
    assert rows[CLASSES]["value"] == 1.0
    assert rows[LEVELS]["clusters"] == 6, "a fifth of 30 dialogues"
    assert rows[LEVELS]["count"] == 12
    assert "high over medium" in rows["all"]["left_out"]


def test_parts_keep_dialogues_whole() -> None:
    parts = parts_of(dialogues(), 3)
    owners = [{record.extras[DIALOGUE] for record in part.records} for part in parts.values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 30


def test_data_that_cannot_examine_is_refused_by_row() -> None:
    half = (Record("p one", "r", 1.0), Record("p two", "r"), Record("p three", "r"))
    with pytest.raises(DataError, match="has no level, the others differ"):
        parts_of(RecordSet("d", half, 3), 0)
    with pytest.raises(DataError, match="d:7: no response"):
        parts_of(RecordSet("d", (Record("p", where="d:7"),), 1), 0)


def test_a_scorer_that_breaks_its_contract_is_named() -> None:
    with pytest.raises(ScorerError, match="'rule' returned 7"):
        rows_of(scorer_of(lambda prompt, reply: 7.0), graded())


def test_the_table_names_rows_data_and_what_is_left_out_and_keeps_texts_to_itself() -> None:
    exam = examine(scorer_of(ideal), [parts_of(graded(), 0)])
    page = "\n".join(markdown_lines(exam.as_dict(texts=True)))
    assert f"| high over medium | graded | accuracy | 1.00 [1.00, 1.00] | 1.00 | {CLIENTS} ({CLIENTS}) |" in page
    assert "left out: levels told apart (needs levels across prompts" in page
    assert "You worry." not in page
    assert "You worry." in "\n".join(text_lines(exam.as_dict(texts=True)))
    assert "You worry." not in json.dumps(exam.as_dict())


# --- constants -------------------------------------------------------------------------------------------------------


def test_the_best_constant_is_the_one_that_trying_all_would_find() -> None:
    texts = [f"reply {number}" for number in range(200)]
    about = [Record(f"prompt {number}") for number in range(20)]
    worth = {text: (number * 37 % 200) / 200 for number, text in enumerate(texts)}
    asked: list[tuple[str, str]] = []

    def score(prompts: Sequence[Any], replies: Sequence[str]) -> list[float]:
        asked.extend((each.prompt, reply) for each, reply in zip(prompts, replies, strict=True))
        return [worth[reply] for reply in replies]

    found = search_constants(score, texts, about)
    assert found[0].text == max(worth, key=lambda text: worth[text])
    assert found[0].mean == pytest.approx(max(worth.values()))
    assert len(asked) == len(set(asked)) < len(texts) * len(about) / 4, "most of them answer a few prompts only"
    assert sum(reply == found[0].text for _, reply in asked) == 20, "the best has answered all"
    first = search_constants(score, texts, about, finalists=5)[:5]
    assert [each.text for each in first] == sorted(worth, key=lambda text: -worth[text])[:5]


def test_candidates_are_replies_their_sentences_and_stock_phrases() -> None:
    records = [Record("p", "You are very tired today. So it goes."), Record("q"), Record("r", "You are here with me.")]
    found = candidates_of(records, most=10, seed=0, stock=["It is hard for you."])
    assert found[0] == "It is hard for you."
    replies = {"You are very tired today. So it goes.", "You are here with me."}
    assert set(found[1:]) == {*replies, "You are very tired today."}, "but no sentence of three words"
    assert len(candidates_of(records, most=2, seed=0, stock=[])) == 2


def test_the_nearest_prompts_are_of_other_clients() -> None:
    prompts = ["my dog is ill", "my dog is old", "money is tight", "my dog barks and is ill"]
    assert nearest(prompts, ["a", "b", "c", "a"], count=1)[0] == [1]
    assert nearest(prompts, ["a", "b", "c", "d"], count=1)[0] == [3]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_against_numbers_worked_by_hand() -> None:
    won = figures.accuracy([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.5)], "abcd")
    assert (won.value, won.count, won.clusters) == (0.625, 4, 4)
    assert won.low < 0.625 < won.high
    assert figures.auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], "abcd").value == pytest.approx(0.75)
    assert figures.auc([0.9, 0.5, 0.5], [2, 1, 0], "abc").value == pytest.approx(5 / 6)
    assert figures.macro_f1([0, 1, 1, 0], [0, 1, 0, 0], 2, "abcd").value == pytest.approx((0.8 + 2 / 3) / 2)
    assert figures.rank_correlation([1, 2, 3, 4], [10, 20, 40, 30], "abcd").value == pytest.approx(0.8)


def test_replies_of_one_cluster_are_one_witness() -> None:
    pairs = [(1.0, 0.0)] * 30 + [(0.0, 1.0)] * 30
    apart = figures.accuracy(pairs, range(60))
    together = figures.accuracy(pairs, [number // 10 for number in range(60)])
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_thresholds_find_classes_that_can_be_told_apart() -> None:
    truth = [0] * 30 + [1] * 10 + [2] * 10
    scores = [0.1 + 0.001 * n for n in range(30)] + [0.5 + 0.001 * n for n in range(10)] + [0.9] * 10
    thresholds = figures.best_thresholds(scores, truth, 3)
    assert figures.classes_of(scores, thresholds) == truth


def test_a_short_exam_asks_less() -> None:
    asked: list[str] = []

    def rule(prompt: str, reply: str) -> float:
        asked.append(reply)
        return 0.5

    examine(scorer_of(rule), [parts_of(graded(), 0)], ExamSettings(replies=2, graded=6, candidates=5, prompts=2))
    assert 0 < len(asked) < 150
