"""The baselines of every comparison, and the warning before a reward is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emorl_core.scorers import Checked, checked
from tests.learn.evaluation_cells import FEELINGS, PLACES, deaf, listening, tiny_recipe, write_cell
from training.data.records import Record
from training.evaluation.run import Wanted, held_out_records, judge
from training.pipeline.fooled import warn_of_constants
from training.pipeline.prepare import load_data

WANTED = Wanted(("base", "emorl"), (1,), "emorl", plots=False)
SENTENCE = "Things will be better soon, I am sure of it."


def fond_of_a_sentence(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [0.9 if reply == SENTENCE else 0.6 if "You feel" in reply else 0.1 for reply in completions]


def broken(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    raise RuntimeError("a client's own words")


def with_replies(folder: Path, **values: Any) -> Any:
    """The tiny recipe, its prompts with a reply each; one of them is the sentence that the scorer above is fond of."""
    recipe = tiny_recipe(
        folder,
        data={"sources": [{"kind": "jsonl", "path": "replies.jsonl", "response": "response"}]},
        objectives={"warmth": {"scorer": {"kind": "callable", "path": f"{__name__}:fond_of_a_sentence"}}},
        **values,
    )
    lines = [
        {"prompt": f"I feel {feeling} {place} again.", "response": f"You feel {feeling} {place}, time and again."}
        for feeling in FEELINGS
        for place in PLACES
    ]
    lines += [{"prompt": f"I am at loss number{n}.", "response": SENTENCE} for n in range(8)]
    (folder / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load_data(recipe, folder)
    return recipe, data, held_out_records(recipe, data)


def judged(folder: Path, recipe: Any, data: Any, records: Any) -> dict[str, Any]:
    for method, rule in (("base", deaf), ("emorl", listening)):
        write_cell(folder / "out", method, 1, records, rule)
    return judge(folder / "out", WANTED, recipe, folder, data)


def test_a_person_a_constant_a_copy_and_anothers_reply_stand_in_every_table(tmp_path: Path) -> None:
    recipe, data, records = with_replies(tmp_path)
    found = judged(tmp_path, recipe, data, records)
    assert list(found["yardsticks"]) == ["human", "constant", "copy", "other-client"]
    reward = {name: own["objectives"]["warmth"]["mean"] for name, own in found["yardsticks"].items()}
    assert reward["constant"] == pytest.approx(0.9)
    assert reward["human"] > reward["copy"] == pytest.approx(0.1)
    assert found["yardsticks"]["copy"]["text"]["copy_rate"]["mean"] == 1.0
    assert found["yardsticks"]["human"]["judges"]["mean"]["mean"] > 0
    assert found["methods"].keys() == {"base", "emorl"}
    assert {made["other"] for made in found["comparisons"]} == {"base"}, "no method is tested against a baseline"
    page = (tmp_path / "out" / "results.md").read_text()
    for name in found["yardsticks"]:
        assert page.count(f"| *{name}* |") == 3, "rewards, judges, text"
        assert f"- *{name}*: " in page
    assert "constant,all,objectives,warmth,0.9" in (tmp_path / "out" / "results.csv").read_text()
    assert SENTENCE not in page + json.dumps(found)
    assert json.loads((tmp_path / "out" / "constant.json").read_text())["text"] == SENTENCE


def test_every_scorer_is_examined_in_the_report(tmp_path: Path) -> None:
    recipe, data, records = with_replies(tmp_path)
    found = judged(tmp_path, recipe, data, records)
    assert found["exams"].keys() == {"warmth", "variety"}
    rows = {row["row"]: row["value"] for row in found["exams"]["warmth"]["rows"]}
    assert rows["human over the best constant"] < 0.5
    assert "## Exam of warmth" in (tmp_path / "out" / "results.md").read_text()


def test_data_without_replies_has_a_constant_and_a_copy(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    data = load_data(recipe, tmp_path)
    found = judged(tmp_path, recipe, data, held_out_records(recipe, data))
    assert list(found["yardsticks"]) == ["constant", "copy"]
    assert found["exams"] == {}


def test_the_constant_and_the_exams_are_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data, records = with_replies(tmp_path)
    first = judged(tmp_path, recipe, data, records)

    def never(*args: Any, **kwargs: Any) -> list[float]:
        raise AssertionError("all of it is known")

    monkeypatch.setattr(Checked, "__call__", never)
    assert judge(tmp_path / "out", WANTED, recipe, tmp_path, data) == first


def test_a_reward_that_a_constant_fools_is_named_at_the_start_with_the_sentence() -> None:
    def kind(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float("tired" in reply) for reply in completions]

    train = [Record(f"I am lost number{n}.", f"You are lost number{n}.") for n in range(20)]
    train += [Record("What now?", SENTENCE)]
    said: list[str] = []
    scorers = {"warmth": checked(fond_of_a_sentence), "odd": checked(broken)}  # type: ignore[arg-type]
    warn_of_constants(scorers, train, said.append)
    (line,) = said
    assert line.startswith("warning: warmth: one sentence for everybody scores 0.900, the data's replies 0.")
    assert line.endswith(SENTENCE)
    said.clear()
    honest = [Record(f"I am tired {n}.", f"You are tired {n}.") for n in range(20)]
    warn_of_constants({"kind": checked(kind)}, honest, said.append)  # type: ignore[arg-type]
    assert said == [], "as good is not better"
    warn_of_constants(scorers, [Record("only a prompt")], said.append)
    assert said == []
