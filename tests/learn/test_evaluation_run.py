"""The comparison as a run: cells that are there stay, failures are told and never filled, and a kill changes nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from emorl_core.errors import EngineError
from tests.apart import exit_code
from tests.builders import tiny_t5
from tests.learn import killed_evaluation
from tests.learn.evaluation_cells import deaf, listening, run_by_rule, tiny_data, write_cell
from training.evaluation.cells import cell_folder, read_cell
from training.evaluation.reporting.results import failures
from training.evaluation.run import EvaluationError, RunCell, Wanted, judge, open_run, run_cells
from training.progress import Progress

BOTH = Wanted(("base", "emorl"), (1, 2), "emorl", plots=False)
WRITTEN = ("results.json", "results.csv", "results.md", "side-by-side.md", "ab-sheet.csv", "ab-key.csv")


def test_killed_at_any_moment_and_started_again_gives_the_same_files(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = killed_evaluation.by_rule(whole)
    for moment in (1, 7, 9):
        assert exit_code(killed_evaluation.by_rule, cut, moment) == -signal.SIGKILL, moment
    assert not (cut / "out" / "results.json").exists()
    assert killed_evaluation.by_rule(cut) == expected
    for name in WRITTEN:
        assert (cut / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name


def test_killed_while_training_and_searching_gives_the_same_table_but_for_times(tmp_path: Path) -> None:
    """The real methods: killed in the adapters' training, in the joint one, and in a search."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        tiny_t5(folder / "base")
    expected = killed_evaluation.trained(whole)
    for moment in (6, 14, 20):
        assert exit_code(killed_evaluation.trained, cut, moment) == -signal.SIGKILL, moment
    assert not (cut / "out" / "results.json").exists()
    found = killed_evaluation.trained(cut)
    for own in (*expected["methods"].values(), *found["methods"].values()):
        assert own.pop("measured")
    assert found == expected
    for cell in whole.glob("out/cells/*/*/replies.jsonl"):
        assert (cut / cell.relative_to(whole)).read_bytes() == cell.read_bytes()
    without_times = [
        [line for line in (folder / "out" / "results.csv").read_text().splitlines() if ",measured," not in line]
        for folder in (whole, cut)
    ]
    assert without_times[0] == without_times[1]
    assert failures(found) == []


def test_cells_that_are_there_are_not_run_again_and_seeds_can_be_added(tmp_path: Path) -> None:
    recipe, data, records = tiny_data(tmp_path)
    ran: list[tuple[str, int]] = []

    def prepare() -> RunCell:
        run = run_by_rule(tmp_path / "out", records)

        def counted(method: str, seed: int, progress: Progress) -> None:
            ran.append((method, seed))
            run(method, seed, progress)

        return counted

    with open_run(tmp_path / "out", recipe, tmp_path, data):
        run_cells(tmp_path / "out", Wanted(("base", "emorl"), (2,), None), prepare)
        run_cells(tmp_path / "out", BOTH, prepare)
    assert ran == [("base", 2), ("emorl", 2), ("base", 1), ("emorl", 1)]

    def never() -> RunCell:
        raise AssertionError("nothing is missing, so nothing is loaded")

    run_cells(tmp_path / "out", BOTH, never)


def test_a_failed_cell_is_reported_and_never_filled(tmp_path: Path) -> None:
    recipe, data, records = tiny_data(tmp_path)
    out = tmp_path / "out"
    run = run_by_rule(out, records)

    def failing(method: str, seed: int, progress: Progress) -> None:
        if (method, seed) == ("emorl", 1):
            raise EngineError("the model gave no number")
        if (method, seed) == ("base", 2):
            raise KeyError("a client's own words")
        run(method, seed, progress)

    with open_run(out, recipe, tmp_path, data):
        run_cells(out, BOTH, lambda: failing)
        found = judge(out, BOTH, recipe, tmp_path, data)
    assert {f"{name} {seed}": why for name, seed, why in failures(found)} == {
        "emorl 1": "the model gave no number",
        "base 2": "KeyError, see error.txt in the cell's folder",
    }
    assert found["methods"]["emorl"]["seeds"] == [2]
    assert found["methods"]["emorl"]["objectives"]["mean"]["seeds"].keys() == {"2"}
    assert found["comparisons"] == [], "the two methods have no seed in common"
    page = (out / "results.md").read_text()
    assert "emorl, seed 1: the model gave no number" in page
    assert "1 of 2" in page
    assert "client's own words" not in page + json.dumps(found)
    assert "emorl,1,status,failed" in (out / "results.csv").read_text()

    run_cells(out, BOTH, lambda: run)
    assert not read_cell(out, "emorl", 1).done, "a failure stays until it is retried"  # type: ignore[union-attr]
    run_cells(out, BOTH, lambda: run, retry_failed=True)
    assert read_cell(out, "emorl", 1).done  # type: ignore[union-attr]


def test_a_method_that_failed_with_every_seed_has_no_numbers(tmp_path: Path) -> None:
    recipe, data, records = tiny_data(tmp_path)
    out = tmp_path / "out"

    def failing(method: str, seed: int, progress: Progress) -> None:
        raise EngineError("out of memory")

    write_cell(out, "base", 1, records, deaf)
    run_cells(out, Wanted(("base", "emorl"), (1,), "emorl"), lambda: failing)
    found = judge(out, Wanted(("base", "emorl"), (1,), "emorl"), recipe, tmp_path, data)
    assert found["methods"]["emorl"] == {"seeds": [], "failed": {"1": "out of memory"}}
    assert found["methods"]["base"]["seeds"] == [1]
    assert (out / "objectives.png").stat().st_size > 1000


@pytest.mark.parametrize("broken", ["missing", "short", "other prompt", "no json"])
def test_replies_that_do_not_fit_make_a_failed_cell(broken: str, tmp_path: Path) -> None:
    recipe, data, records = tiny_data(tmp_path)
    out, wanted = tmp_path / "out", Wanted(("base", "emorl"), (1,), None, plots=False)
    write_cell(out, "base", 1, records, deaf)
    write_cell(out, "emorl", 1, records, listening)
    path = cell_folder(out, "emorl", 1) / "replies.jsonl"
    lines = path.read_text().splitlines()
    if broken == "missing":
        path.unlink()
    else:
        changed = {"short": lines[:-1], "other prompt": [lines[1], lines[0], *lines[2:]], "no json": ["{", *lines[1:]]}
        path.write_text("\n".join(changed[broken]) + "\n")
    found = judge(out, wanted, recipe, tmp_path, data)
    ((name, _, why),) = failures(found)
    assert name == "emorl"
    assert "replies.jsonl" in why
    assert found["methods"]["emorl"]["seeds"] == []


def test_a_run_is_not_gone_on_with_by_another_recipe_or_other_data(tmp_path: Path) -> None:
    recipe, data, _ = tiny_data(tmp_path)
    out = tmp_path / "out"
    with open_run(out, recipe, tmp_path, data):
        pass
    with pytest.raises(EvaluationError, match="holds a comparison; --resume"), open_run(out, recipe, tmp_path, data):
        pass
    other, same, _ = tiny_data(tmp_path, rl={"max_new_tokens": 9})
    with (
        pytest.raises(EvaluationError, match="another recipe"),
        open_run(out, other, tmp_path, same, resume=True),
    ):
        pass
    judged, same, _ = tiny_data(tmp_path, evaluation={"scorers": {"far": "edit_rate"}}, seed=5)
    with open_run(out, judged, tmp_path, same, resume=True):
        pass  # judges and the recipe's own seed change no cell
    fewer, smaller, _ = tiny_data(tmp_path, data={"sources": [{"kind": "jsonl", "path": "prompts.jsonl"}], "seed": 3})
    with pytest.raises(EvaluationError, match="another"), open_run(out, fewer, tmp_path, smaller, resume=True):
        pass
    with open_run(out, other, tmp_path, same, overwrite=True):
        assert sorted(path.name for path in out.iterdir()) == ["evaluation.json"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    recipe, data, _ = tiny_data(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with (
            pytest.raises(EvaluationError, match="no comparison"),
            open_run(tmp_path / "mine", recipe, tmp_path, data, **options),
        ):
            pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def work_in(folder: Path) -> None:
    """A second program; it leaves what it was told in a file."""
    recipe, data, _ = tiny_data(folder)
    with pytest.raises(EvaluationError) as refused, open_run(folder / "out", recipe, folder, data, resume=True):
        pass
    (folder / "told").write_text(refused.value.message)


def test_two_programs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    recipe, data, _ = tiny_data(tmp_path)
    with open_run(tmp_path / "out", recipe, tmp_path, data):
        assert exit_code(work_in, tmp_path) == 0
    assert "another program is at work in it" in (tmp_path / "told").read_text()


def test_scores_are_kept_until_replies_or_scorers_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emorl_core.scorers.base import Checked

    asked: list[str] = []
    call = Checked.__call__

    def counted(self: Checked, *args: Any, **kwargs: Any) -> list[float]:
        asked.append(self.__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Checked, "__call__", counted)
    recipe, data, records = tiny_data(tmp_path)
    out, wanted = tmp_path / "out", Wanted(("base",), (1,), None, plots=False)
    write_cell(out, "base", 1, records, deaf)
    judge(out, wanted, recipe, tmp_path, data)
    assert set(asked) == {"diversity", "lexical_empathy", "lexical_reflection"}
    asked.clear()
    judge(out, wanted, recipe, tmp_path, data)
    assert asked == []
    more, data, _ = tiny_data(tmp_path, evaluation={"scorers": {"variety": "diversity", "far": "edit_rate"}})
    judge(out, wanted, more, tmp_path, data)
    assert asked == ["edit_rate"] * 3, "only the new judge is asked: about the cell, the constant and the copy"
    asked.clear()
    write_cell(out, "base", 1, records, listening)
    judge(out, wanted, more, tmp_path, data)
    assert len(asked) == 4, "other replies, other scores"


def test_a_scorer_that_breaks_its_contract_fails_the_cell_by_name(tmp_path: Path) -> None:
    spec = {"kind": "callable", "path": "tests.learn.test_evaluation_run:no_number"}
    recipe, data, records = tiny_data(tmp_path, evaluation={"scorers": {"broken": spec}})
    write_cell(tmp_path / "out", "base", 1, records, deaf)
    found = judge(tmp_path / "out", Wanted(("base",), (1,), None, plots=False), recipe, tmp_path, data)
    assert "no_number" in found["methods"]["base"]["failed"]["1"]


def no_number(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float("nan")] * len(completions)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"methods": ()}, "methods"),
        ({"methods": ("base", "base")}, "methods"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"reference": "soup"}, "reference"),
        ({"ab_pairs": (("base", "soup"),)}, "ab"),
        ({"ab_pairs": (("base", "base"),)}, "ab"),
        ({"ab_items": 0}, "ab_items"),
        ({"side_by_side": 0}, "side_by_side"),
    ],
)
def test_what_cannot_be_wanted_is_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        Wanted(**{"methods": ("base", "emorl"), "seeds": (1,), "reference": None, **values})
    assert caught.value.param == field


def test_a_recipe_without_test_prompts_is_refused(tmp_path: Path) -> None:
    sources = [{"kind": "jsonl", "path": "prompts.jsonl"}]
    with pytest.raises(EvaluationError, match="test prompts"):
        tiny_data(tmp_path, data={"sources": sources, "splits": {"train": 0.9, "validation": 0.1}})
