"""`--threads` of the commands that compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_cli.console.options import use_threads
from emorl_cli.main import main
from emorl_core.errors import InvalidRequest
from tests.builders import tiny_t5_bundle


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_number_is_used_and_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    use_threads(2, "cpu")
    assert torch.get_num_threads() == 2
    assert capsys.readouterr().err == "computing with 2 threads\n"
    use_threads("auto", "cpu", say=False)
    assert torch.get_num_threads() == 1, "the tests' own number is the most that is tried"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("threads", [0, 1025, "many", "2.5", "-1"])
def test_what_is_no_number_of_threads_is_refused(threads: Any) -> None:
    with pytest.raises(InvalidRequest, match="allowed: auto, or a whole number from 1 to 1024"):
        use_threads(threads, "cpu")


@pytest.mark.parametrize(
    "arguments",
    [["generate", "BUNDLE", "x"], ["sweep", "BUNDLE", "x", "--resolution", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_the_commands_have_it(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(tiny_t5_bundle(tmp_path / "bundle"))
    command = [bundle if each == "BUNDLE" else each for each in arguments]
    assert main([*command, "--max-new-tokens", "2", "--threads", "2"]) == 0
    assert torch.get_num_threads() == 2
    assert main([*command, "--threads", "0"]) == 2
    assert "threads is 0; allowed: auto, or a whole number from 1 to 1024" in capsys.readouterr().err
