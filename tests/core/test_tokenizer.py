"""The tokenizer beside the base, and the builders' own one."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from emorl_core.bundles.bundle import BASE_DIR
from emorl_core.errors import BundleError
from emorl_core.models.fake import FakeTokenizer
from emorl_core.text.tokenizer import HuggingFaceTokenizer

TEXTS = ("I can't keep up at work.", "Zürich 🙂", "x", "двадцать   два", "a\tb")


def test_text_survives_and_the_end_of_sequence_is_added(plain_bundle: Path) -> None:
    tokenizer = HuggingFaceTokenizer(plain_bundle / BASE_DIR)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids[-1] == 1
        assert 2 not in ids, "nothing is unknown"
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("feel [SEP] ").count(3) == 1, "[SEP] is one token"
    assert tokenizer.decode([0, 3, 5, 1]) == tokenizer.decode([5]), "special tokens have no text"


def test_spaces_before_punctuation_stay() -> None:
    """Hugging Face's clean-up would take them away, and streamed text would not join any more."""
    tokenizer = FakeTokenizer()
    assert tokenizer.decode(tokenizer.encode("so . much ?")) == "so . much ?"


def test_threads_may_share_it(plain_bundle: Path) -> None:
    tokenizer = HuggingFaceTokenizer(plain_bundle / BASE_DIR)
    expected = {text: tokenizer.encode(text) for text in TEXTS}
    wrong: list[str] = []

    def work() -> None:
        for _ in range(50):
            wrong.extend(t for t, ids in expected.items() if tokenizer.encode(t) != ids or tokenizer.decode(ids) != t)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []


def test_decoding_waits_for_no_encoding(plain_bundle: Path) -> None:
    """One lock for both made every stream wait while a long prompt was tokenised."""
    tokenizer = HuggingFaceTokenizer(plain_bundle / BASE_DIR)
    text = "you feel it is hard " * 60_000
    begun, stop, encoded = threading.Event(), threading.Event(), []

    def encode() -> None:
        while not stop.is_set():
            begun.set()
            encoded.append(len(tokenizer.encode(text)))

    thread = threading.Thread(target=encode)
    thread.start()
    assert begun.wait(60)
    for _ in range(20):
        assert tokenizer.decode([5, 6]) == tokenizer.decode([5, 6, 1])
    meanwhile = len(encoded)
    stop.set()
    thread.join(60)
    assert meanwhile < 10, "each of the 40 decodings waited for an encoding"


def test_a_tokenizer_written_in_python_decodes_while_it_encodes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    (tmp_path / "config.json").write_text(
        '{"model_type": "t5", "vocab_size": 384, "eos_token_id": 1, "pad_token_id": 0}'
    )
    tokenizer = HuggingFaceTokenizer(tmp_path)
    inside, leave, ids = threading.Event(), threading.Event(), []

    def slow(text: str, **_: object) -> list[int]:
        inside.set()
        assert leave.wait(60)
        return [len(text)]

    tokenizer._tokenizer.encode = slow
    thread = threading.Thread(target=lambda: ids.append(tokenizer.encode("text")))
    thread.start()
    assert inside.wait(60)
    assert tokenizer.decode([107, 108, 1]) == "hi"
    leave.set()
    thread.join(60)
    assert ids == [[4, 0, 0, 1]], "the prompt, nothing around it, and the end of sequence"


def test_truncation_and_padding_that_a_tokenizer_was_saved_with_are_off(plain_bundle: Path, tmp_path: Path) -> None:
    plain = HuggingFaceTokenizer(plain_bundle / BASE_DIR)
    saved = Path(shutil.copytree(plain_bundle / BASE_DIR, tmp_path / "base")) / "tokenizer.json"
    content = json.loads(saved.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}  # fmt: skip
    saved.write_text(json.dumps(content), encoding="utf-8")
    assert HuggingFaceTokenizer(saved.parent).encode(TEXTS[0]) == plain.encode(TEXTS[0])


def test_no_token_is_longer_than_the_longest(plain_bundle: Path) -> None:
    tokenizer = HuggingFaceTokenizer(plain_bundle / BASE_DIR)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert tokenizer.longest_token >= max(map(len, texts)) > 5
    assert FakeTokenizer.longest_token >= max(len(FakeTokenizer().decode([i])) for i in range(FakeTokenizer.vocab_size))


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_without_a_tokenizer_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match="the tokenizer cannot be loaded") as caught:
        HuggingFaceTokenizer(tmp_path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer.json", None, "cannot be read as JSON: [Errno 21] Is a directory"),
        ("tokenizer.json", "[]", "must be a JSON object"),
        ("tokenizer_config.json", "[]", "must be a JSON object"),
        ("tokenizer_config.json", "5", "must be a JSON object"),
    ],
)
def test_the_file_at_fault_is_named(
    name: str, content: str | None, why: str, plain_bundle: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(plain_bundle / BASE_DIR, tmp_path / "base"))
    (base / name).unlink()
    if content is None:
        (base / name).mkdir()
    else:
        (base / name).write_text(content)
    with pytest.raises(BundleError) as caught:
        HuggingFaceTokenizer(base)
    assert caught.value.message.startswith(f"{base}: the tokenizer cannot be loaded: {name} {why}")


@pytest.mark.parametrize("text", ["so much", "café 🙂 !", "two  spaces", "", " "])
def test_the_fake_tokenizer_returns_any_text(text: str) -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode(text)
    assert ids[-1] == 1
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
