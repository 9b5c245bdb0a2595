"""`emorl replay`: a receipt gives the same tokens again, and whatever was changed since is found."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from emorl_core.bundles.bundle import Bundle, write_spec
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.ensemble import Ensemble
from server.settings import Settings
from tests.chats import tiny_chat_bundle
from tests.http.harness import events, live

PROMPT = "my mother left again, ZEBRAFISH, and nobody listens"
_MIX = {"reflection": 2, "empathy": 1, "base": 0.5}
_SAMPLED = {"temperature": 1.1, "top_p": 0.95, "top_k": 60, "repetition_penalty": 1.1, "seed": 12}
Save = Callable[[Any], Path]


@pytest.fixture(autouse=True)
def no_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is printed by any of these, the prompt is not in it."""
    from tests.cli import conftest

    original = conftest.Ran.__init__
    printed: list[str] = []

    def spied(self: Any, code: int, out: str, err: str) -> None:
        printed.append(out + err)
        original(self, code, out, err)

    monkeypatch.setattr(conftest.Ran, "__init__", spied)
    yield
    assert "ZEBRAFISH" not in "".join(printed)


@pytest.fixture(scope="module")
def answers(bundle: Path) -> dict[str, Any]:
    """Answers with receipts, from every route that gives them."""
    native = {"prompt": PROMPT, "weights": _MIX, "max_new_tokens": 16, "receipt": True}
    ai = {"model": "tiny:empathy", "max_tokens": 9, "receipt": True}
    chat = {**ai, "messages": [{"role": "user", "content": PROMPT}]}
    with live(Settings(port=0, bundle=str(bundle), dtype="float32")) as server, server.client() as client:

        def post(path: str, **body: Any) -> Any:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return events(answer.text) if body.get("stream") else answer.json()

        ids = post("/v1/completions", **ai, prompt=[40, 41, 42, 1], n=2, seed=3)
        return {
            "greedy": post("/generate", **native),
            "sampled": post("/generate", **native, **_SAMPLED, stop=["zzz"]),
            "probs": post("/generate", **native, combine="probs", temperature=0.9),
            "streamed": post("/generate", **native, **_SAMPLED, stream=True)[-1],
            "completions": post("/v1/completions", **ai, prompt=[PROMPT, "i drink"], n=2),
            "token ids": ids,
            "chat": post("/v1/chat/completions", **chat, seed=1),
            "chat, streamed": next(e for e in post("/v1/chat/completions", **chat, stream=True) if "emorl" in e),
        }


KINDS = ("greedy", "sampled", "probs", "streamed", "completions", "token ids", "chat", "chat, streamed")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(document: Any) -> Path:
        file = tmp_path / "receipt.json"
        file.write_text(json.dumps(document), encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_is_made_again_to_the_same_tokens(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, kind: str
) -> None:
    ran = emorl("replay", save(answers[kind]), bundle, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert report["same"] is True
    assert len(report["receipts"]) == {"completions": 4, "token ids": 2}.get(kind, 1)
    for each in report["receipts"]:
        assert each["verdict"] == "same"
        assert each["damage"] == each["mismatches"] == each["notes"] == each["differences"] == []
        assert each["tokens"] > 0


def test_a_receipt_alone_and_from_standard_input_is_taken_and_no_word_is_printed(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = answers["sampled"]["receipt"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(receipt).encode())))
    ran = emorl("replay", "-", bundle)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].strip() == "the same tokens"
    marked = save(receipt)
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes().replace(b"\n", b"\r\n"))
    assert emorl("replay", marked, bundle).out == ran.out
    assert "ZEBRAFISH" not in ran.out
    assert receipt["text"] not in ran.out


def test_the_bundle_comes_from_the_environment_or_the_receipt_when_none_is_named(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = save(answers["greedy"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no demo here"))
    monkeypatch.delenv("EMORL_BUNDLE", raising=False)
    assert "name the folder or hub id of 'tiny'" in emorl("replay", file).refused()
    monkeypatch.setenv("EMORL_BUNDLE", str(bundle))
    assert emorl("replay", file).code == 0
    monkeypatch.delenv("EMORL_BUNDLE")
    asked: list[str] = []

    def fetch(where: str, revision: str | None = None) -> Path:
        asked.append(where)
        return bundle

    receipt = answers["greedy"]["receipt"]
    from_hub = {**receipt, "identity": {**receipt["identity"], "source": "clinic/tiny"}}
    monkeypatch.setattr("emorl_core.bundles.bundle.hub_folder", fetch)
    assert emorl("replay", save(from_hub)).code == 1, "the seal shows that the source was put in"
    assert asked == ["clinic/tiny"]


def _retrain(folder: Path, objective: str) -> None:
    file = folder / "adapters" / objective / "adapter_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def test_a_bundle_that_has_changed_where_it_matters_is_named_and_not_run(
    emorl, answers: dict[str, Any], own_bundle: Path, save: Save
) -> None:
    _retrain(own_bundle, "empathy")
    base = own_bundle / "base" / "model.safetensors"
    save_file({name: tensor + 0.001 for name, tensor in load_file(base).items()}, base, {"format": "pt"})
    spec = Bundle.open(own_bundle).spec
    write_spec(own_bundle, spec.model_copy(update={"prompt_template": "{prompt} => "}))
    ran = emorl("replay", save(answers["greedy"]), own_bundle)
    assert ran.code == 1
    for what in ("the adapter of empathy", "the base model", "the prompt template"):
        assert f"cannot be the same: {what} is another one" in ran.out
    assert "adapter of reflection" not in ran.out
    assert ran.out.splitlines()[-1].strip().startswith("NOT REPLAYED")
    anyway = json.loads(emorl("replay", save(answers["greedy"]), own_bundle, "--anyway", "--json").out)
    assert anyway["same"] is False
    assert anyway["receipts"][0]["verdict"] == "differs"
    assert anyway["receipts"][0]["differences"][0].startswith("from token ")


def test_what_made_no_difference_to_a_text_may_change(
    emorl, answers: dict[str, Any], own_bundle: Path, save: Save
) -> None:
    _retrain(own_bundle, "fluency")  # weight 0 in the receipt
    spec = Bundle.open(own_bundle).spec
    write_spec(own_bundle, spec.model_copy(update={"profiles": {"new": ProfileSpec(weights={"empathy": 1.0})},
                                                   "default_profile": None}))  # fmt: skip
    ran = emorl("replay", save(answers["sampled"]), own_bundle, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["receipts"][0]["notes"] == [
        "bundle.yaml was changed since, in nothing that matters here"
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": {"reflection": 1.0, "empathy": 0.0}}, "sha256 does not fit"),
        ({"id": "gen-other"}, "sha256 does not fit"),
        ({"finish_reason": "cancelled"}, "sha256 does not fit"),
        ({"prompt": "something else"}, "prompt_sha256 does not fit"),
        ({"token_ids": [5, 6, 7]}, "tokens_sha256 does not fit"),
        ({"tokens_sha256": "0" * 64}, "tokens_sha256 does not fit"),
    ],
)
def test_a_receipt_that_was_changed_is_found_out(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, change: dict[str, Any], says: str
) -> None:
    ran = emorl("replay", save({**answers["greedy"]["receipt"], **change}), bundle, "--json")
    assert ran.code == 1
    (each,) = json.loads(ran.out)["receipts"]
    assert each["verdict"] == "refused"
    assert any(says in line for line in each["damage"])


def test_a_text_that_was_changed_is_found_out_by_the_replay(
    emorl, answers: dict[str, Any], bundle: Path, save: Save
) -> None:
    receipt = answers["greedy"]["receipt"]
    ran = emorl("replay", save({**receipt, "text": receipt["text"] + "!"}), bundle)
    assert ran.code == 1
    assert "the receipt's text is not what they spell" in ran.out


def test_tokens_that_come_out_different_are_not_called_the_same(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: hashes fit, and rounding tips one token."""
    from emorl_core.engine.engine import Engine

    finish_reason = Engine._finish_reason

    def tipped(self: Engine, branch: Any, token_id: int) -> Any:
        if len(branch.tokens) == 3:
            branch.tokens[2] = 7
        return finish_reason(self, branch, token_id)

    monkeypatch.setattr(Engine, "_finish_reason", tipped)
    for receipt in (answers["greedy"]["receipt"], {**answers["greedy"]["receipt"], "token_ids": None}):
        ran = emorl("replay", save(receipt), bundle, "--json")
        assert ran.code == 1
        (each,) = json.loads(ran.out)["receipts"]
        assert each["verdict"] == "differs"
        assert each["differences"][0].startswith("from token 3 on" if receipt["token_ids"] else "the tokens are others")


@pytest.mark.parametrize("kind", ["sampled", "token ids"])
def test_a_receipt_kept_without_clinical_words_asks_for_the_prompt(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, tmp_path: Path, kind: str
) -> None:
    answer = answers[kind]
    receipt = answer["receipt"] if "receipt" in answer else answer["emorl"]["receipts"][0]
    bare = save({**receipt, "prompt": None, "text": None, "token_ids": None})
    assert "--prompt-file" in emorl("replay", bare, bundle).refused()
    prompt = tmp_path / "prompt.txt"
    content = receipt["prompt"] if isinstance(receipt["prompt"], str) else json.dumps(receipt["prompt"])
    prompt.write_text(content + "\n", encoding="utf-8")
    assert emorl("replay", bare, bundle, "--prompt-file", prompt).code == 0
    prompt.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode() + b"\r\n")  # from another editor
    assert emorl("replay", bare, bundle, "--prompt-file", prompt).code == 0
    prompt.write_text("someone else's words")
    ran = emorl("replay", bare, bundle, "--prompt-file", prompt)
    assert ran.code == 1
    assert "the prompt is another one" in ran.out


def test_other_versions_are_noted_and_decide_nothing(emorl, answers: dict[str, Any], bundle: Path, save: Save) -> None:
    from server.serving.receipt import Receipt, _seal

    receipt = Receipt.model_validate_json(json.dumps(answers["greedy"]["receipt"]))
    older = receipt.model_copy(update={"versions": {**receipt.versions, "torch": "2.0"}, "device": "cuda:0"})
    older = older.model_copy(update={"sha256": _seal(older)})
    ran = emorl("replay", save(older.model_dump(mode="json")), bundle)
    assert ran.code == 0
    assert "note: torch was 2.0 and is" in ran.out
    assert "note: device was cuda:0 and is cpu" in ran.out


def test_a_compiled_step_is_compiled_again_or_a_note_says_that_it_was_not(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.serving.receipt import Receipt, _seal

    receipt = Receipt.model_validate_json(json.dumps(answers["greedy"]["receipt"])).model_copy(
        update={"compiled": True}
    )
    receipt = receipt.model_copy(update={"sha256": _seal(receipt)})
    asked: list[bool] = []
    load = Ensemble.load

    def spied(where: Any, **options: Any) -> Ensemble:
        asked.append(options.get("compile", False))
        return load(where, **options)

    monkeypatch.setattr(Ensemble, "load", spied)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing compiled here"))
    ran = emorl("replay", save(receipt.model_dump(mode="json")), bundle)
    assert asked == [True, False]
    assert ran.code == 0
    assert "note: compile was true and is false" in ran.out


def test_what_is_no_receipt_is_refused_in_one_line_without_its_content(
    emorl, answers: dict[str, Any], bundle: Path, tmp_path: Path, save: Save
) -> None:
    file = tmp_path / "x.json"
    whole = json.dumps(answers["greedy"])
    for content, says in [
        (whole[: len(whole) // 2], "cut short"),
        ("", "not JSON"),
        ("[1]", "holds no receipt"),
        ("[" * 100_000, "nested too deeply"),
        ('{"receipt":' * 100_000, "nested too deeply"),
        (whole.replace('"created"', '"id": "x", "created"'), "key 'id' stands twice"),
        (whole.replace('"max_new_tokens": 16', f'"max_new_tokens": {"9" * 400}'), "a whole number of 400 digits"),
        (whole.replace('"max_new_tokens": 16', f'"max_new_tokens": {"9" * 5000}'), "a whole number of 5000 digits"),
        (whole.replace('"temperature": 0.0', '"temperature": 1e999'), "the number '1e999' is too large"),
        (json.dumps({**answers["greedy"], "receipt": None}), "holds no receipt"),
        (json.dumps({**answers["greedy"]["receipt"], "format": "emorl-receipt/2"}), "format: "),
        (json.dumps({k: v for k, v in answers["greedy"]["receipt"].items() if k != "weights"}), "weights: "),
        (json.dumps({**answers["greedy"]["receipt"], "prompt": {"text": PROMPT}}), "prompt"),
    ]:
        file.write_text(content, encoding="utf-8")
        message = emorl("replay", file, bundle).refused()
        assert says in message
        assert "ZEBRAFISH" not in message
    file.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in emorl("replay", file, bundle).refused()
    assert "no such file" in emorl("replay", tmp_path / "none.json", bundle).refused()
    assert "no such folder" in emorl("replay", save(answers["greedy"]), tmp_path / "none").refused()
    assert "standard input" in emorl("replay", "-", bundle, "--prompt-file", "-").refused()


def test_a_copy_of_the_bundle_elsewhere_is_as_good(
    emorl, answers: dict[str, Any], bundle: Path, save: Save, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "moved")
    assert emorl("replay", save(answers["chat"]), copy).code == 0


def test_a_chat_is_replayed_with_its_messages_or_with_those_of_a_file(emorl, tmp_path: Path, save: Save) -> None:
    bundle = tiny_chat_bundle(tmp_path / "bundle")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    body = {"model": "chat", "messages": chat, "max_tokens": 9, "receipt": True}
    with live(Settings(port=0, bundle=str(bundle), dtype="float32")) as server, server.client() as client:
        answer = client.post("/v1/chat/completions", json=body).json()
        said = {"model": "chat", "prompt": f"<|im_start|>user\n{PROMPT}", "max_tokens": 9, "receipt": True}
        raw = client.post("/v1/completions", json=said).json()
    assert emorl("replay", save(answer), bundle).code == emorl("replay", save(raw), bundle).code == 0
    kept = {**answer["emorl"]["receipts"][0], "prompt": None, "text": None, "token_ids": None}
    file = tmp_path / "chat-file.json"
    file.write_text(json.dumps(chat, indent=1), encoding="utf-8")
    assert emorl("replay", save(kept), bundle, "--prompt-file", file).code == 0
    file.write_text(json.dumps(chat[1:]), encoding="utf-8")
    assert "the prompt is another one" in emorl("replay", save(kept), bundle, "--prompt-file", file).out
