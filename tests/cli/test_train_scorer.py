"""`emorl train-scorer` from outside: what it prints, and one line with exit code 2 for everything that is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emorl_cli.main import main
from tests.learn import scorer_models
from training.scorers.learned.fitting import Fitting

QUICK = ("--epochs", "1", "--max-length", "32", "--device", "cpu", "--seed", "3")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an encoder and graded data in it."""
    scorer_models.encoder(tmp_path / "encoder")
    rows = [
        {"prompt": f"I am sad {'and tired ' * n}because of work.", "response": reply, "grade": grade}
        for n in range(12)
        for reply, grade in (("You are sad because of your work.", 1), ("Why?", 0))
    ]
    (tmp_path / "graded.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "broken.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"prompt": "x"}])))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    return main(["train-scorer", *words])


GRADED = ("jsonl:graded.jsonl", "--level-column", "grade", "--encoder", "encoder")


def test_it_trains_reports_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*GRADED, "--out", "scorers/new", "--loss", "margin", *QUICK) == 0
    said = capsys.readouterr()
    assert "graded.jsonl: 24 rows, 24 records, 12 prompts, 0 malformed rows skipped" in said.out
    assert "high_over_low: " in said.out
    total = re.findall(r"^steps: (\d+) of (\d+)$", said.err, flags=re.MULTILINE)[-1]
    assert total[0] == total[1], "long work shows progress, to its end"
    assert "scorers/new: written after 1 epoch; kept is epoch 1, the best on the validation prompts" in said.out
    assert (folder / "scorers" / "new" / "README.md").is_file()


def test_the_progress_of_a_resumed_run_counts_all_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*GRADED, "--out", "new", *QUICK, "--epochs", "3")
    epoch = Fitting.epoch

    def interrupted(fitting: Fitting, number: int, progress: object) -> None:
        if number == 2:
            raise KeyboardInterrupt
        epoch(fitting, number, progress)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "epoch", interrupted)
        assert run(*argv) == 130
    monkeypatch.setattr("emorl_cli.console.progress.Progress.PLAIN_EVERY_S", 0.0)
    capsys.readouterr()
    assert run(*argv, "--resume") == 0
    said = capsys.readouterr()
    counted = [tuple(map(int, pair)) for pair in re.findall(r"^steps: (\d+) of (\d+)$", said.err, flags=re.MULTILINE)]
    total = counted[0][1]
    assert counted == [(done, total) for done in range(total * 2 // 3 + 1, total + 1)]
    assert "written after 3 epochs; kept is epoch " in said.out


def test_json_is_one_document_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("jsonl:broken.jsonl", *GRADED[1:], "--out", "new", "--on-bad-row", "skip", "--json", *QUICK) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["loss"] == "classes"
    assert report["data"][0]["skipped"] == 1
    assert report["seed"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*GRADED, "--out", "full"), "'full' already holds something"),
        ((*GRADED, "--out", "new", "--resume"), "there is no interrupted run of 'new'"),
        ((*GRADED, "--out", "new", "--resume", "--overwrite"), "exclude each other"),
        (("graded.jsonl", "--encoder", "encoder", "--out", "new"), "is not KIND:PATH; write for example pair:"),
        (("jsnl:graded.jsonl", "--encoder", "encoder", "--out", "new"), "(did you mean 'jsonl'?)"),
        (("psych8k:x.json", "--encoder", "encoder", "--out", "new"), "data.view is 'graded'"),
        (("pair:none.csv", "--encoder", "encoder", "--out", "new"), "'none.csv' does not exist"),
        (("jsonl:broken.jsonl", *GRADED[1:], "--out", "new"), "broken.jsonl:25: 'response' is missing"),
        (("jsonl:graded.jsonl", "--encoder", "encoder", "--out", "new"), "'level' is not a finite number"),
        ((*GRADED[:3], "--encoder", "./nowhere", "--out", "new"), "'./nowhere' is not a folder"),
        ((*GRADED, "--out", "new", "--epochs", "0"), "train-scorer.epochs is 0: Input should be greater"),
        ((*GRADED, "--out", "new", "--epochs", "many"), "argument --epochs: invalid int value"),
        ((*GRADED, "--out", "new", "--learning-rate", "nan"), "train-scorer.learning_rate is nan"),
        ((*GRADED, "--out", "new", "--max-length", "100"), "max_length is 100; 'encoder' reads at most 64 tokens"),
        ((*GRADED, "--out", "new", "--threads", "0"), "--threads is 0"),
        ((*GRADED, "--out", "new", "--device", "abacus"), "device 'abacus' is not here"),
        (("jsonl:graded.jsonl", "--encoder", "encoder"), "required: --out"),
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
    assert "Traceback" not in said
    assert (folder / "full" / "mine.txt").read_text() == "kept"
    assert not (folder / "new").exists()


def test_help_explains_with_an_example_and_loads_no_torch() -> None:
    script = (
        "import sys; from emorl_cli.main import main\n"
        "try: main(['train-scorer', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules or 'pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "emorl train-scorer pair:" in done.stdout
