"""Table, CSV, page and plots say what the cells hold, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from emorl_core.scorers.diversity import distinct_bigrams
from emorl_core.scorers.lexical.scorers import LexicalReflection
from tests.learn.evaluation_cells import copying, deaf, listening, tiny_data, write_cell
from training.data.records import Record
from training.evaluation.cells import Reply
from training.evaluation.run import Wanted, judge
from training.evaluation.scores import MEASURES, copy_rate, measures_of

ALL = Wanted(("base", "uniform", "emorl"), (1, 2), "emorl", (("emorl", "base"),), side_by_side=3)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    folder = tmp_path_factory.mktemp("run")
    recipe, data, records = tiny_data(folder)
    out = folder / "out"
    for seed in (1, 2):
        write_cell(out, "base", seed, records, deaf, weights=None, curve={})
        write_cell(out, "uniform", seed, records, copying)
        search = {"evaluations": 51, "prompts": 64, "seconds": 3.5}
        write_cell(out, "emorl", seed, records, listening if seed == 1 else deaf, search=search)
    return out, judge(out, ALL, recipe, folder, data), records


def test_numbers_are_the_scorers_own(ran: tuple[Path, dict[str, Any], Any]) -> None:
    _, found, records = ran
    prompts, replies = [r.prompt for r in records], [listening(r.prompt) for r in records]
    scores = LexicalReflection()(prompts=prompts, completions=replies)
    own = found["methods"]["emorl"]
    assert own["objectives"]["reflection"]["seeds"]["1"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    pair = own["objectives"]
    assert pair["mean"]["mean"] == pytest.approx((pair["reflection"]["mean"] + pair["empathy"]["mean"]) / 2)
    assert own["judges"]["variety"]["seeds"]["1"] == pytest.approx(
        sum(map(distinct_bigrams, replies)) / len(replies), abs=1e-6
    )
    assert set(own["text"]) == set(MEASURES)
    copied = found["methods"]["uniform"]["text"]
    assert (copied["copy_rate"]["mean"], copied["edit_rate"]["mean"]) == (1.0, 0.0)
    assert copied["distinct_2"]["low"] is None, "a prompt drawn twice is not a reply given twice"
    one_for_all = found["methods"]["base"]["text"]
    assert (one_for_all["distinct"]["mean"], one_for_all["same_start"]["mean"]) == (0.0, 1.0)


def test_a_formula_shows_in_how_replies_begin() -> None:
    texts = ["I hear you: it is hard.", "i hear YOU", "You feel unheard.", "I hear", ""]
    replies = [
        Reply(index=i, prompt_sha256="", text=text, tokens=1, finish_reason="stop") for i, text in enumerate(texts)
    ]
    measured = measures_of(replies, [Record("I am tired.")] * len(texts))
    assert measured["same_start"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert measured["distinct"].tolist() == [1.0] * 5, "it does not show there"


def test_distinct_2_is_of_all_replies_together() -> None:
    texts = ["you feel sad today", "You feel sad.", "you are tired", "no", ""]
    replies = [
        Reply(index=i, prompt_sha256="", text=text, tokens=1, finish_reason="stop") for i, text in enumerate(texts)
    ]
    bigrams = ["you feel", "feel sad", "sad today", "you feel", "feel sad", "you are", "are tired"]
    measured = measures_of(replies, [Record("I am tired.")] * len(texts))
    assert measured["distinct_2"].mean() == pytest.approx(len(set(bigrams)) / len(bigrams))
    silent = measures_of(replies[3:], [Record("I am tired.")] * 2)
    assert silent["distinct_2"].tolist() == [0.0, 0.0]


def test_costs_stand_beside_and_the_clock_apart(ran: tuple[Path, dict[str, Any], Any]) -> None:
    _, found, _ = ran
    own = found["methods"]["emorl"]
    assert own["consumption"]["prompts"] == {"mean": 161.5, "spread": pytest.approx(0.7071, abs=1e-4), "seeds": {"1": 161, "2": 162}}  # fmt: skip
    assert own["consumption"]["search_evaluations"]["mean"] == 51
    assert found["methods"]["base"]["consumption"]["search_evaluations"]["mean"] == 0
    assert own["measured"]["search_seconds"]["mean"] == 3.5
    rest = {key: value for key, value in own.items() if key != "measured"}
    assert "seconds" not in json.dumps(rest)
    assert "ms_per_token" not in json.dumps(rest)


def test_tests_are_counted_and_two_seeds_make_no_claim(ran: tuple[Path, dict[str, Any], Any]) -> None:
    _, found, _ = ran
    made = found["comparisons"]
    assert [(c["other"], c["column"]) for c in made] == [
        ("base", "objectives.mean"),
        ("uniform", "objectives.mean"),
        ("base", "judges.mean"),
        ("uniform", "judges.mean"),
    ]
    assert found["statistics"]["comparisons"] == 4
    assert found["statistics"]["claims"] == 0
    assert all(c["p"] is None and c["p_holm"] is None and not c["claim"] for c in made), "two seeds make no claim"
    assert all(0 < c["p_prompts_of_these_models"] <= 1 for c in made)
    assert made[0]["seeds_ahead"] == 1, "ahead with seed 1; equal with seed 2"


def test_the_page_and_the_csv_hold_every_number(ran: tuple[Path, dict[str, Any], Any]) -> None:
    out, found, _ = ran
    page = (out / "results.md").read_text()
    mean = found["methods"]["emorl"]["objectives"]["mean"]
    assert f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] ± {mean['spread']:.3f}" in page
    assert json.loads((out / "results.json").read_text()) == found
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    line = {(r["method"], r["seed"], r["group"], r["column"]): r for r in rows}
    assert len(line) == len(rows), "one value a line"
    assert float(line["emorl", "all", "objectives", "mean"]["low"]) == mean["low"]
    assert float(line["emorl", "2", "objectives", "mean"]["value"]) == mean["seeds"]["2"]
    assert float(line["uniform", "all", "consumption", "prompts"]["value"]) == 161.5


def test_a_report_of_few_seeds_says_that_it_makes_no_claim(ran: tuple[Path, dict[str, Any], Any]) -> None:
    out, found, _ = ran
    page = (out / "results.md").read_text()
    assert "**No claim about methods is made here**: none has 5 seeds" in page
    assert "p, these trained models only" in page
    assert found["replies_sha256"] in page
    assert "0 of 4 comparisons rest on 5 seeds" in page


def test_five_seeds_make_claims_and_what_was_left_out_is_told(tmp_path: Path) -> None:
    recipe, data, records = tiny_data(tmp_path)
    out, seeds = tmp_path / "out", (1, 2, 3, 4, 5)
    for seed in seeds:
        write_cell(out, "base", seed, records, deaf, weights=None, curve={})
        write_cell(out, "emorl", seed, records, listening)
    wanted = Wanted(("base", "emorl"), seeds, "emorl", plots=False, left_out={"dynaopt": "it has too few rounds"})
    found = judge(out, wanted, recipe, tmp_path, data)
    assert found["statistics"]["claims"] == len(found["comparisons"]) == 2
    assert all(made["p_holm"] >= made["p"] for made in found["comparisons"])
    page = (out / "results.md").read_text()
    assert "No claim" not in page
    assert "## Left out\n\n- dynaopt: it has too few rounds" in page


def test_one_other_reply_is_another_digest(tmp_path: Path) -> None:
    recipe, data, records = tiny_data(tmp_path)
    wanted = Wanted(("base",), (1,), None, plots=False)

    def digest(name: str, last: str) -> str:
        def answer(prompt: str) -> str:
            return last if prompt == records[-1].prompt else listening(prompt)

        write_cell(tmp_path / name, "base", 1, records, answer)
        return str(judge(tmp_path / name, wanted, recipe, tmp_path, data)["replies_sha256"])

    assert digest("one", "You are tired.") == digest("two", "You are tired.") != digest("three", "You are hurt.")


def test_no_text_leaves_but_on_the_pages_for_people(ran: tuple[Path, dict[str, Any], Any]) -> None:
    out, _, records = ran
    for path in out.glob("results.*"):
        text = path.read_text()
        assert not any(record.prompt in text for record in records), path.name
        assert "makes sense" not in text, path.name
    page = (out / "side-by-side.md").read_text()
    assert page.count("## Prompt") == 3
    assert page.count("- **emorl**") == 3


def test_everything_is_drawn_in_both_formats(ran: tuple[Path, dict[str, Any], Any]) -> None:
    out, _, _ = ran
    for name in ("reward-consumption", "objectives", "judges", "training-curves"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (out / f"{name}.svg").read_text()
    assert ">emorl<" in (out / "reward-consumption.svg").read_text()


@pytest.mark.parametrize(
    ("prompt", "reply", "rate"),
    [
        ("I feel tired at work", "You feel tired at work", 4 / 5),
        ("I feel tired", "I feel tired", 1.0),
        ("I feel tired", "Work is hard", 0.0),
        ("I feel tired", "", 0.0),
        ("so tired, so very tired", "Tired so", 1.0),
        ("so tired of work", "tired so", 0.5),
    ],
)
def test_copy_rate_is_the_longest_common_run(prompt: str, reply: str, rate: float) -> None:
    assert copy_rate(prompt, reply) == pytest.approx(rate)
