"""`emorl examine-scorer` from outside: the table, JSON, and one line with exit code 2 for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emorl_cli.main import main
from tests.learn import scorer_models

SHORT = ("--replies", "3", "--graded", "20", "--candidates", "5", "--prompts", "2", "--device", "cpu", "--threads", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        {"prompt": f"I am sad and tired of my number{n}.", "response": reply, "level": level}
        for n in range(20)
        for reply, level in ((f"You are sad because of your number{n}.", 1), ("Why is that so?", 0))
    ]
    (tmp_path / "graded.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scorer_models.classifier(tmp_path / "my-judge", ["quality"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    return main(["examine-scorer", *words])


GRADED = ("--data", "jsonl:graded.jsonl", "--level-column", "level")


def test_it_prints_the_table_the_constant_and_what_is_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("lexical_reflection", *GRADED, *SHORT) == 0
    said = capsys.readouterr().out
    assert said.startswith("lexical_reflection\nrow ")
    assert "level 1 over 0" in said
    assert "graded.jsonl: best constant 0." in said
    assert "left out: high over medium (needs three levels within a prompt, as in pair)" in said


@pytest.mark.parametrize("scorer", ["my-judge", "{kind: cross_encoder, model: my-judge}", "diversity"])
def test_scorers_are_named_as_in_a_recipe_or_by_their_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], scorer: str
) -> None:
    assert run(scorer, *GRADED, *SHORT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scorer"] == ("diversity" if scorer == "diversity" else "cross_encoder")
    assert found["constants"][0]["text"]
    assert found["settings"]["replies"] == 3


def test_replies_without_levels_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diversity", "--data", "jsonl:graded.jsonl", *SHORT, "--json") == 0
    rows = {row["row"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert "human over the best constant" in rows
    assert "level 1 over 0" not in rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lexical_reflexion", *GRADED), "did you mean 'lexical_reflection'?"),
        (("{kind: perplexity", *GRADED), "scorer: it cannot be read as YAML"),
        (("diversity", "--data", "graded.jsonl"), "is not KIND:PATH"),
        (("diversity", "--data", "jsonl:none.jsonl"), "'none.jsonl' does not exist"),
        (("diversity",), "required: --data"),
        (("diversity", *GRADED, "--replies", "0"), "--replies is 0; allowed: a whole number from 1"),
        (("diversity", *GRADED, "--seed", "-1"), "--seed is -1; allowed: a whole number from 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    try:
        code = run(*words)
    except SystemExit as stopped:  # argparse's own way out
        code = int(stopped.code or 0)
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert message in said
    assert len([line for line in said.splitlines() if line.startswith("emorl: error:")]) == 1
