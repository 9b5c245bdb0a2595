"""Every script in examples/, and every Python block of the guides and explanations, on a tiny bundle and a real server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from emorl_core.bundles.bundle import Bundle
from server.settings import Settings
from tests.documents import ROOT, Reader, blocks, chat_like, demo_like, lines
from tests.http.harness import Live, live
from training.recipe.recipe import load_recipe

EXAMPLES = ROOT / "examples"
GUIDES = ROOT / "docs" / "guides"
WITH_PYTHON = [
    path
    for folder in (GUIDES, ROOT / "docs" / "explanation")
    for path in sorted(folder.glob("*.md"))
    if blocks(path.read_text(encoding="utf-8"), "python")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my-bundle` in it, and what the guides find there."""
    folder = tmp_path_factory.mktemp("reader")
    bundle = demo_like(folder / "my-bundle")
    shutil.copytree(bundle / "base", folder / "my-base")
    shutil.copytree(bundle / "adapters", folder / "adapters")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(EXAMPLES, folder / "examples")
    shutil.copy(EXAMPLES / "prompts.csv", folder / "my-prompts.csv")
    return folder


@pytest.fixture(scope="module", params=["t5", "chat"])
def either(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my-bundle` of each family."""
    if request.param == "t5":
        return folder
    return chat_like(tmp_path_factory.mktemp("chats") / "my-bundle").parent


@pytest.fixture(scope="module")
def server(either: Path) -> Iterator[Live]:
    # An untrained model does not know when to stop; the limit ends it.
    with live(Settings(port=0, bundle=str(either / "my-bundle"), max_new_tokens=64)) as running:
        yield running


def test_steering_by_curl(folder: Path, server: Live) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    said = Reader(folder).type(f"bash examples/steer.sh {server.url}")
    assert said.count("---") == 4
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    mixes = [answer["weights"]["reflection"] for answer in answers if "usage" in answer]
    assert mixes == pytest.approx([0.9, 0.1])
    assert "data: [DONE]" in said
    assert answers[-1]["intervals"]


def test_steering_by_the_openai_client(folder: Path, server: Live) -> None:
    pytest.importorskip("openai")
    said = Reader(folder).script("examples/openai_client.py", server.url)
    assert "models: counselor-demo, counselor-demo:" in said
    assert "unknown objective 'empaty'" in said.splitlines()[-1]


def test_steering_in_python(either: Path) -> None:
    said = Reader(either).script("examples/in_python.py")  # my-bundle, as it says
    assert "objectives: reflection, empathy, fluency" in said
    assert " texts from 15 mixes" in said


def test_a_scorer_of_ones_own(folder: Path) -> None:
    said = Reader(folder).script("examples/own_scorer.py")
    assert [line[:4] for line in said.splitlines()] == ["1.00", "0.33", "0.00"]
    recipe = load_recipe(
        folder / "recipes" / "tutorial.yaml",
        ["objectives.no_advice={scorer: {kind: callable, path: examples.own_scorer:no_advice}}"],
    )
    assert "no_advice" in recipe.objectives


@pytest.mark.parametrize("guide", ["own-adapters.md", "own-scorer.md"])
def test_the_commands_of_the_guides(guide: str, folder: Path, tmp_path: Path) -> None:
    """In order, in a folder of their own. Left out: serving, which other tests do, and the hub's T5-base."""
    clone = shutil.copytree(folder, tmp_path / "clone")
    shutil.rmtree(clone / "my-bundle")
    reader = Reader(clone)
    said = [
        reader.type(line)
        for line in lines((GUIDES / guide).read_text(encoding="utf-8"))
        if not line.startswith(("emorl serve", "emorl import-npz"))
    ]
    assert all(said)
    if guide == "own-adapters.md":
        spec = Bundle.open(clone / "my-bundle").spec
        assert tuple(spec.objectives) == ("reflection", "empathy")
        assert spec.prompt_template == "{prompt} [SEP] "


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda path: path.stem)
def test_python_in_guides_and_explanations(page: Path, folder: Path) -> None:
    reader = Reader(folder)
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        assert "assert " in block or "print(" in block, "it shows nothing"
        assert bool(reader.python(block).strip()) == ("print(" in block)


def test_every_example_is_on_the_examples_page_and_run_here() -> None:
    page = (GUIDES / "examples.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        if path.name != "__pycache__":
            assert f"../../examples/{path.name}" in page, path.name
            assert path.name in here, path.name
