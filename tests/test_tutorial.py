"""docs/tutorial.md word for word: a user with prompts of their own reaches a served profile.

Every command runs as it stands, in order, in a folder that holds what a clone holds. What is changed, and only this:

- `make setup` and `source` are looked at with `make --dry-run`, not run: the environment of the tests is what they make.
- `emorl train` gets `--set` for a model of a few thousand parameters and one step, `emorl search` gets one level. How long
  the real thing takes is measured by hand and said in the tutorial.
- `emorl serve` gets a free port in place of 8000, and so do the requests to it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emorl_core.bundles.bundle import Bundle
from tests.documents import ROOT, SMALL_BASE, SMALL_RL, Reader, blocks, lines, options
from training.recipe.recipe import load_recipe

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SMALLER = {
    "emorl train": options(*SMALL_BASE, *SMALL_RL),
    "emorl search": " --levels 1 --max-new-tokens 4",
}
BY_HAND = ("make setup", "source .venv/bin/activate")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The tutorial, followed from the first command to the last: (the folder, command -> what it printed)."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    reader, said = Reader(folder), {}
    server: subprocess.Popen[str] | None = None
    try:
        for line in lines(TUTORIAL):
            if line in BY_HAND:
                continue
            if line.startswith("emorl serve"):
                server, reader.url = _serve(line, folder)
                continue
            more = next((added for start, added in SMALLER.items() if line.startswith(start)), "")
            said[line] = reader.type(line + more)
        yield folder, said
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # what Ctrl-C sends
            _, errors = server.communicate(timeout=60)
            assert server.returncode == 0, errors


def _serve(line: str, folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "emorl_cli", *line.split()[1:], "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("serving on http://"), process.communicate()
    return process, ready.split()[-1]


def _of(said: dict[str, str], start: str) -> list[str]:
    found = [text for line, text in said.items() if line.startswith(start)]
    assert found, f"the tutorial has no {start} any more"
    return found


def test_a_profile_of_the_users_own_is_served(read: tuple[Path, dict[str, str]]) -> None:
    folder, said = read
    spec = Bundle.open(folder / "my-bundle").spec
    assert spec.default_profile == "mine"
    plain, steered, line = (json.loads(answer) for answer in _of(said, "curl"))
    assert plain["profile"] == "mine"
    assert plain["weights"] == pytest.approx({**dict.fromkeys(spec.objectives, 0.0), **spec.profiles["mine"].weights})
    assert (steered["profile"], steered["weights"]["empathy"]) == (None, 0.8)
    assert steered["tokens"][0]["attribution"]
    assert line["intervals"][0]["start"] == 0.0


def test_every_step_says_what_the_tutorial_says_it_does(read: tuple[Path, dict[str, str]]) -> None:
    folder, said = read
    assert _of(said, "head")[0].startswith("prompt\n")
    plan, trained = _of(said, "emorl train")
    assert "at most" in plan
    assert "my-bundle: written" in trained
    assert "found is better by" in _of(said, "emorl search")[0]
    assert len(_of(said, "emorl generate")) == 2
    assert (folder / "search-my-counselor" / "report.json").is_file()


def test_the_commands_that_are_not_run_exist() -> None:
    typed = [line for block in blocks(TUTORIAL, "bash") for line in block.splitlines()]
    assert [line for line in typed if line in BY_HAND] == list(BY_HAND)
    planned = subprocess.run(["make", "--dry-run", "setup"], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr


def test_the_numbers_in_the_text_are_those_of_the_recipe_and_the_prompts() -> None:
    recipe = load_recipe(ROOT / "recipes" / "tutorial.yaml")
    assert (recipe.rl.prompts_per_step, recipe.rl.samples_per_prompt) == (16, 4)
    assert "16 prompts per step the model samples four replies" in TUTORIAL
    prompts = (ROOT / "examples" / "prompts.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(prompts) == len(set(prompts)) == 80
    assert "Eighty" in TUTORIAL
    assert round(80 * recipe.data.splits["test"]) == 16
    assert re.search(r"with 16 prompts", TUTORIAL)
    assert f"search-{recipe.name}" in TUTORIAL
