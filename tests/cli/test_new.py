"""`emorl new`: a bundle that serves and was inspected, or nothing at all and one line that says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import emorl_core.bundles.bundle
from emorl_core.bundles.bundle import BUNDLE_FILE, Bundle, PromptSpec, read_spec
from emorl_core.ensemble import Ensemble
from emorl_core.errors import BundleError
from tests.chats import TURNS, tiny_chat_bundle
from tests.cli.conftest import Ran

Emorl = Callable[..., Ran]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template, and an adapter for it, as parts of a bundle."""
    return tiny_chat_bundle(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, bundle: Path, chat: Path) -> None:
    """Repositories that the hub has; any other name cannot be fetched."""
    known = {
        "clinic/t5": bundle / "base",
        "clinic/calm": bundle / "adapters" / "empathy",
        "clinic/chat": chat / "base",
        "clinic/one": chat / "adapters" / "one",
    }

    def fetch(name: str, revision: str | None = None) -> Path:
        if name not in known:
            raise BundleError(f"hub id {name!r}: cannot be fetched: no network")
        return known[name]

    monkeypatch.setattr(emorl_core.bundles.bundle, "hub_folder", fetch)


def test_adapters_of_t5(emorl: Emorl, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "my-bundle"
    ran = emorl(
        "new", out, "--base", bundle / "base", "--prompt-template", "{prompt} [SEP] ",
        "--objective", f"calm={bundle / 'adapters' / 'empathy'}", "--objective", f"clear={bundle / 'adapters' / 'fluency'}",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert "\nvalid\n" in ran.out
    assert ran.out.splitlines()[-1] == f"emorl serve {out}"
    spec = read_spec(out / BUNDLE_FILE)
    assert (spec.name, spec.base.path, spec.default_profile) == ("my-bundle", "base", "even")
    assert spec.profiles["even"].weights == {"calm": 1.0, "clear": 1.0}
    own, other = Ensemble.load(out, device="cpu"), Ensemble.load(bundle, device="cpu")
    for mine, theirs in (({"calm": 1.0}, {"empathy": 1.0}), ({"clear": 1.0}, {"fluency": 1.0})):
        mine_said, theirs_said = own.generate("work hurts", mine), other.generate("work hurts", theirs)
        assert mine_said.token_ids == theirs_said.token_ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-bundle"]
    assert emorl("inspect", out).code == 0


def test_only_what_is_read_is_copied(emorl: Emorl, bundle: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(bundle / "base", base)
    shutil.copytree(bundle / "adapters" / "empathy", adapter)
    for place in (base / "pytorch_model.bin", base / "training.log", adapter / "optimizer.pt"):
        place.write_bytes(b"x")
    (base / "checkpoint-5").mkdir()
    out = tmp_path / "out"
    assert emorl("new", out, "--base", base, "--objective", f"calm={adapter}").code == 0
    assert sorted(p.name for p in (out / "base").iterdir()) == sorted(p.name for p in (bundle / "base").iterdir())
    found = sorted(p.name for p in (out / "adapters" / "calm").iterdir())
    assert found == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_linked_base_stays_where_it_is(emorl: Emorl, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = {path: path.stat().st_mode for path in (bundle / "base").iterdir()}
    empathy = bundle / "adapters" / "empathy"
    assert emorl("new", out, "--base", bundle / "base", "--link", "--objective", f"calm={empathy}").code == 0
    assert (out / "base").is_symlink()
    assert {path: path.stat().st_mode for path in (bundle / "base").iterdir()} == before
    assert Ensemble.load(out, device="cpu").generate("work hurts", {"calm": 1.0}).token_ids
    refused = emorl("new", tmp_path / "b", "--base", bundle / "base", "--link", "--objective", f"calm={empathy / 'x'}")
    assert refused.code == 2
    assert {path: path.stat().st_mode for path in (bundle / "base").iterdir()} == before


def test_sentences_of_a_chat_model(emorl: Emorl, chat: Path, tmp_path: Path) -> None:
    """Its template is used unasked; a name twice has adapter and sentence."""
    out = tmp_path / "out"
    ran = emorl(
        "new", out, "--base", chat / "base", "--system", "You are kind.", "--name", "kind", "--json",
        "--objective", "warm=Answer warmly.", "--objective", f"one={chat / 'adapters' / 'one'}",
        "--objective", "one=1 + 1 = 2, be exact.", "--objective", "short=簡潔に。",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert (report["valid"], report["bundle"], report["serve"]) == (True, str(out), f"emorl serve {out}")
    spec = read_spec(out / BUNDLE_FILE)
    assert spec.name == "kind"
    assert spec.chat is not None
    assert spec.chat.system == "You are kind."
    assert spec.max_source_tokens == 4096
    assert spec.prompts == {
        "warm": PromptSpec(system="Answer warmly."),
        "one": PromptSpec(system="1 + 1 = 2, be exact."),
        "short": PromptSpec(system="簡潔に。"),
    }
    assert spec.adapted == ("one",)


@pytest.mark.parametrize(
    ("options", "in_chat", "tokens"),
    [
        ([], True, 4096),
        (["--chat"], True, 4096),
        (["--chat", "--max-source-tokens", "99"], True, 99),
        (["--no-chat"], False, 512),
        (["--prompt-template", "Say: {prompt}"], False, 512),
    ],
)
def test_chat_is_taken_for_granted_where_there_is_a_template(
    options: list[str], in_chat: bool, tokens: int, emorl: Emorl, chat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    adapter = chat / "adapters" / "one"
    assert emorl("new", out, "--base", chat / "base", "--objective", f"one={adapter}", *options).code == 0
    spec = read_spec(out / BUNDLE_FILE)
    assert (spec.chat is not None, spec.max_source_tokens) == (in_chat, tokens)


def test_a_sentence_without_chat_is_a_template(emorl: Emorl, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ("new", out, "--base", bundle / "base", "--objective")
    said = emorl(*argv, "formal=Rewrite formally.").refused()
    assert "must contain {prompt} exactly once: in a bundle without chat a sentence is what stands around" in said
    assert emorl(*argv, "formal=Rewrite formally: {prompt}").code == 0
    assert read_spec(out / BUNDLE_FILE).prompts == {"formal": PromptSpec(template="Rewrite formally: {prompt}")}


def test_hub_ids(emorl: Emorl, hub: None, tmp_path: Path) -> None:
    """The base is named with its revision, the adapter is copied."""
    out = tmp_path / "out"
    ran = emorl("new", out, "--base", "clinic/t5", "--revision", "v1", "--objective", "calm=clinic/calm")
    assert (ran.code, ran.err) == (0, "")
    spec = read_spec(out / BUNDLE_FILE)
    assert (spec.base.path, spec.base.hub, spec.base.revision) == (None, "clinic/t5", "v1")
    assert not (out / "base").exists()
    assert (Bundle.open(out).adapter_folder("calm") / "adapter_model.safetensors").is_file()
    assert emorl("new", tmp_path / "b", "--base", "clinic/chat", "--objective", "warm=Be warm.").code == 0
    assert read_spec(tmp_path / "b" / BUNDLE_FILE).chat is not None


def test_a_folder_of_that_name_wins_over_the_hub(
    emorl: Emorl, hub: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle / "adapters" / "fluency", tmp_path / "clinic" / "calm")
    assert emorl("new", "out", "--base", "clinic/t5", "--objective", "calm=clinic/calm").code == 0
    copied = (tmp_path / "out" / "adapters" / "calm" / "adapter_config.json").read_bytes()
    assert copied == (bundle / "adapters" / "fluency" / "adapter_config.json").read_bytes()


BAD = [
    (["--objective", "calm"], "--objective 'calm': allowed: NAME=ADAPTER_FOLDER, NAME=HUB_ID, NAME=SENTENCE"),
    (["--objective", "calm="], "allowed: NAME=ADAPTER_FOLDER"),
    (["--objective", "=Be warm."], "allowed: NAME=ADAPTER_FOLDER"),
    (["--objective", "calm=warmly"], "--objective calm: 'warmly' is no folder; allowed: a PEFT LoRA folder, a hub id"),
    (["--objective", "calm=/no/such folder"], "is no folder"),
    (["--objective", "calm=a/b/c"], "'a/b/c' is no folder"),
    (["--objective", "calm=clinic/none"], "hub id 'clinic/none': cannot be fetched"),
    (["--objective", "calm=EMPATHY", "--objective", "calm=EMPATHY"], "--objective calm: has two adapters"),
    (["--objective", "calm=Be {prompt} so.", "--objective", "calm=Be {prompt} else."], "calm: has two sentences"),
    (["--objective", "base=EMPATHY"], "objectives.base: the name is taken by the bare model"),
    (["--objective", "a b=EMPATHY"], "objectives.a b: String should match pattern"),
    (["--objective", "../up=EMPATHY"], "objectives.../up: String should match pattern"),
    (
        ["--objective", "calm=BASE"],
        "': adapter 'calm': its folder has no adapter_config.json; allowed: a PEFT LoRA folder",
    ),
    (["--base", "no/such/folder"], "--base 'no/such/folder' is no folder; allowed: a checkpoint folder, or a hub id"),
    (["--base", "./clinic"], "--base './clinic' is no folder; allowed: a checkpoint folder, or a hub id"),
    (["--base", "clinic/none"], "--base 'clinic/none' is no folder, and hub id 'clinic/none': cannot be fetched"),
    (["--objective", "one=ONE"], "adapter 'one'"),
    (["--base", "EMPATHY"], "no config.json"),
    (["--base", "clinic/t5", "--link"], "--link goes with a folder; --base 'clinic/t5' is none"),
    (["--revision", "v1"], "--revision goes with a hub id"),
    (["--prompt-template", "{client}"], "prompt_template: must contain {prompt} exactly once"),
    (["--prompt-template", "{prompt}", "--chat"], "--prompt-template and --chat exclude each other"),
    (["--prompt-template", "{prompt}", "--system", "Be."], "--prompt-template and --system exclude each other"),
    (["--no-chat", "--system", "Be."], "--system and --no-chat exclude each other"),
    (["--chat"], "chat is set and the base's tokenizer has no chat template"),
    (["--system", " "], "--system: system: must be a text"),
    (["--max-source-tokens", "0"], "max_source_tokens: Input should be greater than or equal to 1"),
    (["--max-source-tokens", "1"], "prompt_template takes 1 tokens by itself; max_source_tokens is 1"),
    (["--name", "my bundle"], "name: String should match pattern"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_is_no_bundle_leaves_nothing_behind(
    options: list[str], says: str, emorl: Emorl, hub: None, bundle: Path, chat: Path, tmp_path: Path
) -> None:
    places = {"EMPATHY": bundle / "adapters" / "empathy", "BASE": bundle / "base", "ONE": chat / "adapters" / "one"}
    argv = [] if "--base" in options else ["--base", "BASE"]
    argv += [] if "--objective" in options else ["--objective", "calm=EMPATHY"]
    argv += options
    for name, place in places.items():
        argv = [str(place) if part == name else part.replace(f"={name}", f"={place}") for part in argv]
    said = emorl("new", tmp_path / "out", *argv).refused()
    assert says in said
    assert str(tmp_path / ".out") not in said, "no temporary name"
    assert list(tmp_path.iterdir()) == []


def test_every_fault_of_the_inspection_is_in_the_line(emorl: Emorl, bundle: Path, chat: Path, tmp_path: Path) -> None:
    one = chat / "adapters" / "one"
    said = emorl(
        "new", tmp_path / "out", "--base", bundle / "base", "--objective", f"a={one}", "--objective", f"b={one}"
    )
    assert "adapter 'a'" in said.refused()
    assert "; adapter 'b'" in said.refused()


def test_nothing_is_overwritten(emorl: Emorl, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    argv = ("new", out, "--base", bundle / "base", "--objective", f"calm={bundle / 'adapters' / 'empathy'}")
    (out / "keep").write_text("me")
    assert f"--out {out}: already holds something; name a new or an empty folder" in emorl(*argv).refused()
    assert [path.name for path in out.iterdir()] == ["keep"]
    (out / "keep").unlink()
    assert emorl(*argv).code == 0


def test_a_fifo_in_the_base_is_refused_and_not_waited_for(emorl: Emorl, bundle: Path, tmp_path: Path) -> None:
    base = shutil.copytree(bundle / "base", tmp_path / "base")
    os.mkfifo(base / "extra.json")
    said = emorl("new", tmp_path / "out", "--base", base, "--objective", f"calm={bundle / 'adapters' / 'empathy'}")
    assert "extra.json: is a FIFO; allowed: a regular file" in said.refused()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_template_that_hides_a_system_prompt_for_good(emorl: Emorl, chat: Path, tmp_path: Path) -> None:
    """`--system` is what the refusal asks for, and then it is written."""
    base = shutil.copytree(chat / "base", tmp_path / "base")
    hidden = "{% if messages[0]['role'] != 'system' %}{{ 'HIDDEN' }}{% endif %}"
    template = (hidden + TURNS).replace("m['content'] + '<|im_end|>'", "m['content'] + (loop.index0 | string)")
    (base / "chat_template.jinja").write_text(template)
    argv = ("new", tmp_path / "out", "--base", base, "--objective", "warm=Be warm.")
    assert "give chat.system" in emorl(*argv).refused()
    assert emorl(*argv, "--system", "You are kind.").code == 0
