"""The frame of every verb: help, unknown words, exit codes, and that help stays light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emorl_cli import main as frame
from emorl_cli.main import VERBS
from tests.documents import ROOT


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(emorl, verb: str) -> None:
    ran = emorl(verb, "--help")
    assert ran.code == 0
    assert "example" in ran.out
    assert f"emorl {verb} " in ran.out.split("example", 1)[1]


def test_every_verb_that_was_written_is_registered() -> None:
    folder = Path(frame.__file__).parent
    paths = [path for path in folder.rglob("*.py") if "\ndef add_arguments(" in path.read_text()]
    written = {".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in paths}
    assert written == {module for module, _ in VERBS.values()}


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_verb(emorl, argv: list[str]) -> None:
    ran = emorl(*argv)
    assert ran.code == 0
    assert all(f"  {verb} " in ran.out for verb in VERBS)
    assert "example" in ran.out


def test_version(emorl) -> None:
    from emorl_core import __version__

    assert emorl("--version").out == f"emorl {__version__}\n"


def test_a_misspelt_verb_is_refused_with_the_nearest_one(emorl) -> None:
    assert "did you mean 'generate'?" in emorl("genrate", "x").refused()


def test_an_unknown_verb_is_refused_with_the_known_ones(emorl) -> None:
    assert "known: demo, serve" in emorl("zzz").refused()


def test_an_unknown_or_abbreviated_flag_is_refused_in_one_line(emorl) -> None:
    assert "emorl inspect --help" in emorl("inspect", "x", "--nope").refused()
    assert "--js" in emorl("inspect", "x", "--js").refused()


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["zzz"], ["generate", "--help"], ["inspect", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from emorl_cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'pydantic', 'fastapi', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def _verb_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    class Module:
        @staticmethod
        def add_arguments(parser) -> None:
            del parser

        @staticmethod
        def run(args) -> int:
            raise error

    monkeypatch.setattr(frame.importlib, "import_module", lambda name: Module)


def test_interrupting_ends_quietly_with_130(emorl, monkeypatch: pytest.MonkeyPatch) -> None:
    _verb_that_raises(monkeypatch, KeyboardInterrupt())
    ran = emorl("inspect")
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_a_fault_of_ours_keeps_its_traceback(emorl, monkeypatch: pytest.MonkeyPatch) -> None:
    _verb_that_raises(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        emorl("inspect")


def test_an_engine_error_is_not_called_bad_input(emorl, monkeypatch: pytest.MonkeyPatch) -> None:
    from emorl_core.errors import NonFinite

    _verb_that_raises(monkeypatch, NonFinite("two\nlines"))
    ran = emorl("inspect")
    assert (ran.code, ran.err) == (1, "emorl: error: two lines\n")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """`emorl --help | head -1`: the pipe breaks at the latest when stdout is flushed."""
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -c "
        "'import sys; from emorl_cli import main as m; m._overview = lambda: \"x\\n\" * 10**6; sys.exit(m.main([]))'"
        " | head -1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_is_utf_8_whatever_the_terminal_has(encoding: str) -> None:
    def ran(*argv: str | bytes) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        return subprocess.run(
            [sys.executable, "-m", "emorl_cli", *argv], capture_output=True, env=environment, cwd=ROOT
        )

    overview = ran("--help")
    assert (overview.returncode, overview.stderr) == (0, b"")
    assert "COMMAND …" in overview.stdout.decode("utf-8")
    refused = ran("inspect…".encode() + b"caf\xe9")  # bytes that are not UTF-8 are no reason for a traceback
    assert refused.returncode == 2
    assert refused.stderr.decode("utf-8").startswith("emorl: error: unknown command 'inspect…caf")
    assert refused.stderr.count(b"\n") == 1


def test_no_standard_output_at_all_is_no_trouble() -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m emorl_cli --version >&-"], capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")
