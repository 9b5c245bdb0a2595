"""The tokenizer beside the base, and the builders' own one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from emorl_core.bundle import BASE_DIR
from emorl_core.errors import BundleError
from emorl_core.models.fake import FakeTokenizer
from emorl_core.tokenizer import HuggingFaceTokenizer

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


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_without_a_tokenizer_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match="the tokenizer cannot be loaded") as caught:
        HuggingFaceTokenizer(tmp_path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("text", ["so much", "café 🙂 !", "two  spaces", "", " "])
def test_the_fake_tokenizer_returns_any_text(text: str) -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode(text)
    assert ids[-1] == 1
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
