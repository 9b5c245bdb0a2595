"""README.md word for word: its commands and code blocks run, on a bundle that has the demo's names and no training.

`make demo` and `make test` are looked at with `make --dry-run`: this suite is what the second runs. Commands that train,
search or measure get options appended that make them small, listed here; commands that serve get a free port.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import training.pipeline.demo
from emorl_cli import serving
from emorl_cli.demo import demo
from emorl_cli.main import VERBS
from emorl_core.adapters.adapter import read_peft
from emorl_core.bundles.bundle import read_spec
from emorl_core.choices.record import Choice
from emorl_core.choices.store import ChoiceStore
from server.settings import Settings
from tests.builders import tiny_t5
from tests.cli.gguf_files import tokens_of, write_gguf
from tests.documents import ROOT, SMALL_BASE, SMALL_RL, Reader, blocks, chat_like, demo_like, lines, options
from tests.http.harness import Live, live
from tests.learn import scorer_models
from tests.supported_models import tiny_causal

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS: list[str] = re.findall(r"^\| `(emorl [^`]+)` \|", README, flags=re.MULTILINE)
CURL = next(line for line in lines(README) if line.startswith("curl"))
SMALLER = {
    "train": options(*SMALL_BASE, *SMALL_RL),
    "warm-start": options(*SMALL_BASE),
    "train-scorer": " --epochs 1 --max-length 32",
    "examine-scorer": " --replies 2 --graded 8 --candidates 3 --prompts 1 --threads 1",
    "search": " --levels 1 --search-prompts 2 --held-out-most 2 --max-new-tokens 4 --no-plots",
    "evaluate": " --methods base --no-plots" + options(*SMALL_BASE, *SMALL_RL, "evaluation.test_prompts=2"),
    "demo": " --tiny",  # the other one is fetched
    "deploy": " --serve-config serve.yaml",  # without Ray
    "bench": " --case memory --shape t5-tiny --peers none --rounds 1 --threads 1",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_like(tmp_path_factory.mktemp("bundles") / "my-bundle")


@pytest.fixture(scope="module", params=["t5", "chat"])
def either(request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`my-bundle` of each family."""
    return bundle if request.param == "t5" else chat_like(tmp_path_factory.mktemp("chats") / "my-bundle")


@pytest.fixture(scope="module")
def server(either: Path) -> Iterator[Live]:
    # An untrained model does not know when to stop; the limit ends it.
    with live(Settings(port=0, bundle=str(either), max_new_tokens=64)) as running:
        yield running


def test_the_two_commands_exist() -> None:
    for line in lines(README):
        if line.startswith("make"):
            planned = subprocess.run(
                ["bash", "-c", line.replace("make", "make --dry-run", 1)], cwd=ROOT, capture_output=True, text=True
            )
            assert planned.returncode == 0, planned.stderr
    assert {"make demo", "make test"} <= set(lines(README))


def test_the_request_by_curl(server: Live, tmp_path: Path) -> None:
    answer = json.loads(Reader(tmp_path, server.url).type(CURL))
    assert answer["text"]
    assert answer["weights"] == pytest.approx({"reflection": 0.7, "empathy": 0.3, "fluency": 0.0})


def test_the_python_blocks(server: Live, either: Path) -> None:
    pytest.importorskip("openai")
    (over_http, in_process) = blocks(README, "python")
    reader = Reader(either.parent, server.url)
    assert (texts := reader.python(over_http).strip())
    assert reader.python(over_http).strip() == texts  # greedy, as it says
    assert "stop" in (said := reader.python(in_process)) or "length" in said
    assert "FinishReason" not in said  # prints as a word


# --- the table of commands -------------------------------------------------------------------------------------------


def _adapter_as_published(bundle: Path, folder: Path) -> None:
    arrays = {}
    for module, pair in read_peft(bundle / "adapters" / "reflection", "reflection").modules.items():
        arrays[f"base_model.model.{module}_loraA"] = pair.a.numpy()
        arrays[f"base_model.model.{module}_loraB"] = pair.b.numpy()
        arrays[f"base_model.model.{module}_scaling"] = np.array(pair.scale)
    np.savez(folder / "reflection.npz", **arrays)
    tiny_t5(folder / "google-t5" / "t5-base")  # a folder of that name wins over the hub


def _model_as_gguf(bundle: Path, folder: Path) -> None:
    pytest.importorskip("gguf", reason="no package gguf (the extra gguf)")
    base = tiny_causal(folder / "base", "llama", vocab_size=len(tokens_of("llama")), attention_bias=False)
    write_gguf(folder / "model.gguf", base, "llama")


def _graded_pairs(bundle: Path, folder: Path) -> None:
    scorer_models.encoder(folder / "my-encoder")
    with open(folder / "pair.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "hq1", "hq2", "mq1", "lq1", "lq2", "lq3", "lq4", "lq5"])
        for n in range(12):
            replies = [f"you are sad and tired {n}", "work makes you sad", "sad"]
            table.writerow([f"i am sad and tired of work {n}", *replies, *(f"why {n} {k}" for k in range(5))])


def _answer_with_receipt(bundle: Path, folder: Path) -> None:
    with live(Settings(port=0, bundle=str(bundle))) as running, running.client() as client:
        answer = client.post("/generate", json={"prompt": "I am tired.", "receipt": True, "max_new_tokens": 4})
        (folder / "answer.json").write_text(answer.text, encoding="utf-8")


def _choices(bundle: Path, folder: Path) -> None:
    spec = read_spec(bundle / "bundle.yaml")
    first, second = list(spec.objectives)[:2]
    shown = [
        {"weights": {first: 1.0}, "text_sha256": "0" * 64, "outcome": "taken"},
        {"weights": {second: 1.0}, "text_sha256": "1" * 64},
    ]
    ChoiceStore(folder / "choices.db").add(Choice.model_validate({"user": "ward-3", "shown": shown}), spec.name)


WHAT_IT_NEEDS: dict[str, Callable[[Path, Path], None]] = {
    "import-gguf": _model_as_gguf,
    "import-npz": _adapter_as_published,
    "train-scorer": _graded_pairs,
    "examine-scorer": _graded_pairs,
    "replay": _answer_with_receipt,
    "learn-weights": _choices,
}
WRITES = {"train", "warm-start", "train-scorer", "import-gguf", "import-npz"}  # their --out must be new


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """`emorl serve` and `emorl demo` serve for as long as the README's request takes; its answers."""
    answers: list[dict[str, object]] = []

    def serve(settings: Settings, on_ready: Callable[[str], None], group: None = None) -> int:
        assert group is None
        with live(settings.model_copy(update={"port": 0})) as running:
            on_ready(running.url)
            answers.append(json.loads(Reader(Path.cwd(), running.url).type(CURL)))
        return 0

    monkeypatch.setattr(serving, "serve", serve)
    monkeypatch.setattr(serving, "check_address", lambda settings: None)
    return answers


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo's recipe with the numbers that `emorl train` gets here too; there is no option for them."""
    from training.recipe.overrides import apply_override
    from training.recipe.recipe import parse_recipe

    full = training.pipeline.demo.DemoSettings.recipe

    def recipe(settings: training.pipeline.demo.DemoSettings, device: str = "auto"):
        values = full(settings, device).model_dump(mode="json")
        values["data"]["sources"][0]["count"] = 80
        for override in (*SMALL_BASE, *SMALL_RL):
            apply_override(values, override)
        return parse_recipe(values)

    monkeypatch.setattr(training.pipeline.demo.DemoSettings, "recipe", recipe)
    monkeypatch.setattr(demo, "build_apart", demo.build_here)  # another process would not see the small numbers
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_command_is_in_the_table() -> None:
    assert [command.split()[1] for command in COMMANDS] == list(VERBS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[1])
def test_the_command_does_what_it_says(
    command: str, bundle: Path, tmp_path: Path, served: list[dict[str, object]], small_demo: None
) -> None:
    verb = command.split()[1]
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    if verb not in WRITES:
        shutil.copytree(bundle, folder / "my-bundle")
    WHAT_IT_NEEDS.get(verb, lambda bundle, folder: None)(bundle, folder)
    said = Reader(folder).type(command + SMALLER.get(verb, ""))
    assert said.strip()
    if verb in ("serve", "demo"):
        assert served[0]["finish_reason"] in ("stop", "length")
    if verb in WRITES:
        assert any((folder / re.findall(r"--out (\S+)", command)[0]).iterdir())


# --- what a clone looks like afterwards --------------------------------------------------------------------------------


def written() -> set[str]:
    """What the commands of the documents leave in a clone, with what lies beside it meanwhile."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    commands = [*COMMANDS, *(line for page in pages for line in lines(page.read_text(encoding="utf-8")))]
    places = {place for line in commands for place in re.findall(r"(?:--out|--folder|--json|>) ([\w./-]+)", line)}
    places |= {"search-my-bundle", "evaluation-demo", "my-bundle.run"}
    tops = {Path(place).parts[0] for place in places if not place.endswith(".json")}
    beside = {f".{top}.{end}" for top in tops for end in ("lock", "building/x", "partial/x")}
    return {place if Path(place).suffix in (".json", ".jsonl", ".txt") else f"{place}/x" for place in places} | beside


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="no clone")
def test_git_ignores_what_the_commands_leave() -> None:
    names = written() | {"my-prompts.csv"}
    assert {"my-bundle/x", "my-base/x", "scorers/reflection/x", ".my-bundle.lock"} <= names
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    asked = subprocess.run(command, input="\n".join(names), cwd=ROOT, capture_output=True, text=True)
    assert names - set(asked.stdout.splitlines()) == set()
    tracked = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert tracked.stdout == "", "nothing of the project itself is ignored"
