"""`emorl evaluate`: what it refuses, what it says, and its exit codes; methods answer by a rule here."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from emorl_core.errors import EngineError
from tests.learn.evaluation_cells import run_by_rule, tiny_recipe
from training.evaluation.run import held_out_records
from training.pipeline.prepare import load_data

METHODS = ("base", "uniform", "emorl")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose methods answer by a rule, but for those in `recipe.fail`."""
    made = tiny_recipe(tmp_path)
    path = tmp_path / "tiny.yaml"
    values = made.model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    methods = ModuleType("training.evaluation.methods.methods")
    records = held_out_records(made, load_data(made, tmp_path))

    def prepare(recipe: Any, folder: Path, out: Path, **options: Any) -> Path:
        options["say"]("loaded")
        return out

    def run_cell(method: str, seed: int, experiment: Path, report: Any) -> None:
        if (tmp_path / f"fail-{method}").exists():
            raise EngineError("the model gave no number")
        run_by_rule(experiment, records)(method, seed, report)

    methods.method_names = lambda recipe: METHODS  # type: ignore[attr-defined]
    methods.left_out = lambda recipe: {}  # type: ignore[attr-defined]
    methods.run_cell = run_cell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "training.evaluation.methods.methods", methods)
    monkeypatch.setattr("training.evaluation.methods.experiment.prepare", prepare)
    return path


def test_one_command_makes_the_table(emorl: Any, recipe: Path) -> None:
    ran = emorl("evaluate", recipe, "--seeds", "1,2", "--no-plots")
    assert ran.code == 0, ran
    assert "emorl" in ran.out
    assert "training prompts" in ran.out
    assert "loaded" in ran.err
    assert "emorl, seed 2 (6 of 6): done" in ran.err
    out = recipe.parent / "evaluation-tiny"
    assert {"results.md", "results.csv", "results.json", "side-by-side.md", "ab-sheet.csv"} <= {p.name for p in out.iterdir()}  # fmt: skip
    before = (out / "results.csv").read_bytes()
    assert "--resume goes on" in emorl("evaluate", recipe, "--seeds", "1,2").refused()
    again = emorl("evaluate", recipe, "--seeds", "1,2", "--resume", "--no-plots", "--json")
    assert (again.code, (out / "results.csv").read_bytes()) == (0, before)
    assert "loaded" not in again.err
    assert json.loads(again.out)["methods"].keys() == set(METHODS)


def test_without_matplotlib_nothing_is_drawn_and_a_note_says_how_to_get_it(
    emorl: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    ran = emorl("evaluate", recipe)
    assert ran.code == 0
    assert (
        ran.err.splitlines()[-1]
        == 'nothing is drawn: plots need matplotlib: pip install "emorl[search]", or --no-plots'
    )
    assert "plots" not in ran.out
    assert "matplotlib" not in emorl("evaluate", recipe, "--no-plots", "--resume").err


def test_a_failed_method_is_told_and_the_exit_code_says_so(emorl: Any, recipe: Path) -> None:
    (recipe.parent / "fail-uniform").touch()
    ran = emorl("evaluate", recipe, "--out", "run", "--no-plots")
    assert ran.code == 1
    assert "uniform, seed 1: failed: the model gave no number" in ran.err
    assert re.search(r"uniform +failed", ran.out)
    (recipe.parent / "fail-uniform").unlink()
    assert emorl("evaluate", recipe, "--out", "run", "--no-plots", "--resume").code == 1
    assert emorl("evaluate", recipe, "--out", "run", "--no-plots", "--resume", "--retry-failed").code == 0


def test_what_is_there_can_be_reported_without_training(emorl: Any, recipe: Path) -> None:
    assert "no such folder" in emorl("evaluate", recipe, "--report-only").refused()
    assert emorl("evaluate", recipe, "--methods", "base", "--no-plots").code == 0
    ran = emorl("evaluate", recipe, "--report-only", "--no-plots", "--seeds", "1,2", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["methods"].keys() == {"base"}


def test_a_method_that_a_run_says_nothing_about_is_left_out_with_the_reason(
    emorl: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = sys.modules["training.evaluation.methods.methods"]
    monkeypatch.setattr(methods, "left_out", lambda recipe: {"uniform": "it has too few rounds"})
    ran = emorl("evaluate", recipe, "--no-plots", "--json")
    assert ran.code == 0
    assert "uniform is left out: it has too few rounds" in ran.err
    found = json.loads(ran.out)
    assert found["methods"].keys() == {"base", "emorl"}
    assert found["left_out"] == {"uniform": "it has too few rounds"}
    assert "uniform is left out: it has" in emorl("evaluate", recipe, "--methods", "uniform", "--out", "2").refused()
    assert "left out" not in emorl("evaluate", recipe, "--methods", "base", "--out", "3", "--no-plots").err


def test_methods_are_listed(emorl: Any, recipe: Path) -> None:
    assert emorl("evaluate", recipe, "--list").out.split() == list(METHODS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "base,emrol"), "did you mean 'emorl'?"),
        (("--methods", "base,base"), "named twice"),
        (("--seeds", "1,x"), "--seeds is '1,x'; allowed: whole numbers"),
        (("--seeds", "1,1"), "seeds"),
        (("--reference", "soups"), "reference: 'soups' is not among"),
        (("--ab", "base"), "--ab 'base' is not NAME,NAME"),
        (("--ab", "base,base"), "against itself"),
        (("--ab-items", "0"), "ab_items is 0"),
        (("--report-only", "--overwrite"), "exclude each other"),
        (("--score-ab", "sheet.csv"), "leave the recipe out"),
        (("--set", "evaluation.scorers={reflection: diversity}"), "objective's name too"),
        (("--set", "evaluation.scorers={new: diversty}"), "did you mean 'diversity'?"),
        (("--set", "evaluation.test_prompts=1"), "evaluation.test_prompts"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    options: tuple[str, ...], message: str, emorl: Any, recipe: Path
) -> None:
    assert message in emorl("evaluate", recipe, *options).refused()
    assert not (recipe.parent / "evaluation-tiny").exists()


def test_a_recipe_must_be_named(emorl: Any) -> None:
    assert "name a recipe" in emorl("evaluate").refused()


def test_a_filled_in_sheet_is_scored(emorl: Any, recipe: Path) -> None:
    assert emorl("evaluate", recipe, "--no-plots", "--ab", "emorl,base").code == 0
    sheet = recipe.parent / "evaluation-tiny" / "ab-sheet.csv"
    assert "nothing is rated yet" in emorl("evaluate", "--score-ab", sheet).refused()
    with open(sheet, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(sheet, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "preference": "left" if row["left"].startswith("You feel") else "right"})
    ran = emorl("evaluate", "--score-ab", sheet)
    assert ran.code == 0
    assert "base over emorl: 0.00 [0.00, 0.00] of 6 items (0 won, 0 tied, 6 lost" in ran.out
    (pair,) = json.loads(emorl("evaluate", "--score-ab", sheet, "--json").out)["pairs"]
    assert pair["losses"] == 6


def test_a_report_alone_runs_nothing_on_a_cluster(emorl: Any, recipe: Path) -> None:
    line = emorl("evaluate", recipe, "--ray", "auto", "--report-only").refused()
    assert "--report-only and --ray exclude each other" in line
