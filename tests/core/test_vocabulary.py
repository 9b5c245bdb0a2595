"""Whether tokenizer and model belong together, and T5's tokenizer from `spiece.model` alone."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer

from emorl_core.bundles.bundle import BASE_DIR, BUNDLE_FILE
from emorl_core.ensemble import Ensemble
from emorl_core.errors import BundleError
from emorl_core.text.tokenizer import HuggingFaceTokenizer, load_tokenizer
from tests.builders import tiny_t5
from tests.chats import BOS, tokenizer_of
from tests.core.bases import LFS_POINTER, edit_config, edit_json
from tests.supported_models import tiny_causal

FAST, SETTINGS, SPIECE = "tokenizer.json", "tokenizer_config.json", "spiece.model"
WORDS = (
    "you feel it is hard to keep up with work and that hurts tired of being alone worried about your family so much on"
    " mind want change but not sure how start hope part wonders whether things will get better"
).split()
TEXTS = ("you feel tired.", "Zürich  ﬁne\tÂ ok ", "two\nlines, 'quoted'", "x", "日本 and work", "  hope")


@pytest.fixture
def bundle(plain_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))


@pytest.fixture
def base(bundle: Path) -> Path:
    return bundle / BASE_DIR


def refusal(base: Path) -> str:
    """What the tokenizer says, and the bundle around it with the same words."""
    with pytest.raises(BundleError) as caught:
        HuggingFaceTokenizer(base)
    if (base.parent / BUNDLE_FILE).exists():
        with pytest.raises(BundleError) as loading:
            Ensemble.load(base.parent, device="cpu", dtype="float32")
        assert loading.value.message == caught.value.message
    assert caught.value.message.startswith(f"{base}: ")
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix(f"{base}: ")


def write_word_level(base: Path, words: dict[str, int], *, end: str = "</s>", eos: str | None = "</s>") -> None:
    """Whole words only, with a template that appends `end`."""
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, words[end])])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(base / FAST))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "pad_token": "<pad>"}
    (base / SETTINGS).write_text(json.dumps(settings | ({"eos_token": eos} if eos else {})))


def word_level(count: int) -> dict[str, int]:
    return {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *(f"word{i}" for i in range(count - 3))])}


def test_a_base_without_its_tokenizers_files_is_refused(base: Path) -> None:
    (base / FAST).unlink()
    (base / SETTINGS).unlink()
    assert refusal(base).startswith("the tokenizer knows no words; a base has its tokenizer's files beside it")


def test_a_base_with_half_of_its_tokenizers_files_is_refused(base: Path) -> None:
    (base / SETTINGS).unlink()
    assert "has 467 entries with ids up to 466" in (message := refusal(base))
    assert message.endswith("the base's vocabulary has 367; tokenizer_config.json is missing")


@pytest.mark.parametrize("words", [3, 4])
def test_an_empty_vocabulary_is_refused(base: Path, words: int) -> None:
    edit_json(base / FAST, lambda content: content["model"].update(vocab=content["model"]["vocab"][:words]))
    assert "knows no words" in refusal(base)


def test_a_vocabulary_that_fills_little_of_the_embedding_is_another_models(base: Path) -> None:
    """T5's tokenizer beside mT5: every id has a row, and means another word there."""
    write_word_level(base, word_level(91))
    assert refusal(base) == "the tokenizer has 91 entries and the base's vocabulary 367; it is another model's"
    write_word_level(base, word_level(92))
    HuggingFaceTokenizer(base)


@pytest.mark.parametrize("rows", [367, 384, 512])
def test_rows_that_no_token_has_are_usual(base: Path, rows: int) -> None:
    usual = [HuggingFaceTokenizer(base).encode(text) for text in TEXTS]
    edit_config(base, lambda config: config.update(vocab_size=rows))
    assert [HuggingFaceTokenizer(base).encode(text) for text in TEXTS] == usual


def test_more_tokens_than_rows_are_refused(base: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**content["added_tokens"][-1], "id": 367, "content": "<one more>"})

    edit_json(base / FAST, add)
    message = "the tokenizer has 368 entries with ids up to 367; the base's vocabulary has 367"
    assert refusal(base) == message


@pytest.mark.parametrize("eos", ["</s>", None])
def test_another_end_of_sequence_is_another_models(base: Path, eos: str | None) -> None:
    """BERT's way: a text ends with another token, or the model ends with another one."""
    words = word_level(300)
    write_word_level(base, words, end="word7", eos=eos)
    ends = "and the base with 1 (eos_token_id); it is another model's"
    assert refusal(base) == f"the tokenizer ends a text with token {words['word7']} {ends}"
    write_word_level(base, words)
    HuggingFaceTokenizer(base)
    for number in (7, [8, 9]):
        edit_json(base / "generation_config.json", lambda c, number=number: c.update(eos_token_id=number))
        named = "7" if number == 7 else "8 or 9"
        assert f"ends a text with token 1 and the base with {named} (eos_token_id)" in refusal(base)
    edit_json(base / "generation_config.json", lambda c: c.update(eos_token_id=[8, 1]))
    HuggingFaceTokenizer(base)


def test_a_tokenizer_that_ends_nothing_and_names_no_end_is_refused(base: Path) -> None:
    edit_json(base / FAST, lambda content: content.update(post_processor=None))
    edit_json(base / SETTINGS, lambda content: content.pop("eos_token"))
    assert refusal(base).startswith("the tokenizer ends a text with no token and the base with 1 (eos_token_id)")


def test_a_token_that_is_added_to_every_text_must_have_a_row(base: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        processor = content["post_processor"]
        processor["special_tokens"]["<go>"] = {"id": "<go>", "ids": [99_999], "tokens": ["<go>"]}
        processor["single"].insert(0, {"SpecialToken": {"id": "<go>", "type_id": 0}})

    edit_json(base / FAST, add)
    assert refusal(base) == "the tokenizer adds token 99999; the base's vocabulary has 367"


def test_a_tokenizer_that_does_not_find_its_own_words_is_refused(base: Path) -> None:
    """Such as the pieces of one library behind the word splitting of another."""
    write_word_level(base, word_level(300))
    swap = {"type": "Replace", "pattern": {"String": "word"}, "content": "Ġ"}
    edit_json(base / FAST, lambda content: content.update(normalizer=swap))
    assert refusal(base) == "the tokenizer does not know its own words; most texts become unknown tokens"


def _no_unknown(content: dict[str, Any]) -> None:
    content["model"].update(unk_id=None)


def _no_token(content: dict[str, Any]) -> None:
    content["post_processor"]["special_tokens"] = {}


@pytest.mark.parametrize("change", [_no_unknown, _no_token])
def test_a_tokenizer_that_fails_at_some_texts_is_refused(base: Path, change: Callable[[Any], None]) -> None:
    """The second is a panic in Rust, which is no `Exception`."""
    edit_json(base / FAST, change)
    assert refusal(base).startswith("the tokenizer cannot encode every text: ")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2.0"},
        {"model": {"type": "Supergram", "vocab": []}},
        {"normalizer": {"type": "Whirl"}},
        {"pre_tokenizer": {"type": "Bytes2"}},
        {"decoder": {"type": "Sing"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # a panic in Rust
        {"model": None},
    ],
)
def test_a_file_of_another_release_is_called_that(base: Path, change: dict[str, Any]) -> None:
    edit_json(base / FAST, lambda content: content.update(change))
    assert refusal(base).startswith("the tokenizer cannot be loaded: tokenizer.json is not understood by tokenizers 0.")
    assert "so a newer release may have written it: " in refusal(base)


@pytest.mark.parametrize("name", [FAST, SETTINGS])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b'{"a":' * 100_000, b""])
def test_a_file_that_is_no_json_is_named(base: Path, name: str, content: bytes) -> None:
    (base / name).write_bytes(content)
    assert refusal(base).startswith(f"the tokenizer cannot be loaded: {name} cannot be read as JSON: ")


@pytest.mark.parametrize("name", [FAST, SETTINGS, SPIECE, "special_tokens_map.json", "added_tokens.json"])
def test_a_pointer_of_git_lfs_is_called_that(base: Path, name: str) -> None:
    (base / name).write_text(LFS_POINTER)
    assert refusal(base) == f"{name} is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"


def test_a_tokenizer_written_in_python_belongs_too(tmp_path: Path) -> None:
    """ByT5: bytes, no file of words, and fewer entries than rows."""
    base = tmp_path / "base"
    tiny_t5(base)
    (base / FAST).unlink()
    (base / SETTINGS).unlink()
    ByT5Tokenizer().save_pretrained(base)
    assert "has 384 entries" in refusal(base)
    tokenizer = HuggingFaceTokenizer(edit_config(base, lambda config: config.update(vocab_size=384)))
    assert tokenizer.encode("aé") == [100, 198, 172, 1]
    assert tokenizer.decode([100, 198, 172, 1]) == "aé"


# -- sentencepiece ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A unigram model in T5's layout: `<pad>` 0, `</s>` 1, `<unk>` 2, no beginning of text."""
    draw = random.Random(0)
    texts = [f"{' '.join(draw.choices(WORDS, k=8))}{draw.choice('.?!,')}" for _ in range(400)]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=120, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, num_threads=1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def size_of(spiece: bytes) -> int:
    return int(SentencePieceProcessor(model_proto=spiece).get_piece_size())


def only_spiece(folder: Path, spiece: bytes, rows: int, **config: Any) -> Path:
    """A base whose tokenizer is `spiece.model` alone, with so many rows for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPIECE).write_bytes(spiece)
    described = {"model_type": "t5", "vocab_size": rows, "eos_token_id": 1, "pad_token_id": 0, **config}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("model_type", ["t5", "mt5"])
@pytest.mark.parametrize("sentinels", [0, 100])
def test_spiece_model_alone_gives_the_ids_of_sentencepiece(
    spiece: bytes, tmp_path: Path, model_type: str, sentinels: int
) -> None:
    """T5's tokenizer has a hundred sentinels behind the pieces; mT5's has none, and no rows for them."""
    base = only_spiece(tmp_path, spiece, size_of(spiece) + sentinels, model_type=model_type)
    tokenizer = HuggingFaceTokenizer(base)
    assert len(tokenizer) == size_of(spiece) + sentinels
    judge = SentencePieceProcessor(model_proto=spiece)
    for text in TEXTS:
        assert tokenizer.encode(text) == judge.encode(text, add_eos=True), text
    assert tokenizer.decode(tokenizer.encode("you feel tired.")) == "you feel tired."


@pytest.mark.parametrize("rows", [0, 57, 100, 112])
def test_the_ids_are_those_of_the_fast_tokenizers_file(spiece: bytes, tmp_path: Path, rows: int) -> None:
    slow = HuggingFaceTokenizer(only_spiece(tmp_path / "slow", spiece, size_of(spiece) + rows))
    extra = {"extra_ids": 0} if rows < 100 else {}
    fast = AutoTokenizer.from_pretrained(tmp_path / "slow", **extra)
    fast.save_pretrained(tmp_path / "fast")
    shutil.copy(tmp_path / "slow" / "config.json", tmp_path / "fast")
    assert not (tmp_path / "fast" / SPIECE).exists()
    assert (tmp_path / "fast" / FAST).exists()
    read = HuggingFaceTokenizer(tmp_path / "fast")
    for text in TEXTS:
        assert slow.encode(text) == read.encode(text) == fast.encode(text), text


def test_what_the_settings_say_about_sentinels_counts(spiece: bytes, tmp_path: Path) -> None:
    base = only_spiece(tmp_path, spiece, size_of(spiece) + 100)
    (base / SETTINGS).write_text('{"extra_ids": 7}')
    assert len(HuggingFaceTokenizer(base)) == size_of(spiece) + 7
    (base / SETTINGS).write_text('{"extra_ids": 101}')
    assert "with ids up to" in refusal(base)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x0a\x03abc" * 9])
def test_a_file_that_is_no_sentencepiece_model_is_called_that(tmp_path: Path, content: bytes) -> None:
    base = only_spiece(tmp_path, content, 200)
    assert refusal(base).startswith("spiece.model cannot be read as sentencepiece: ")


def test_a_bundle_with_spiece_model_alone_serves(spiece: bytes, bundle: Path, base: Path) -> None:
    (base / FAST).unlink()
    (base / SETTINGS).unlink()
    (base / SPIECE).write_bytes(spiece)
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32")
    assert ensemble.generate("you feel tired.", max_new_tokens=5).token_ids


def test_a_start_before_every_text_is_no_end(tmp_path: Path) -> None:
    """As Llama, Mistral and Gemma have it."""
    base = tiny_causal(tmp_path, "llama", vocab_size=260, eos_token_id=258)
    tokenizer = tokenizer_of(None)
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, start)]
    )
    tokenizer.save_pretrained(base)
    assert load_tokenizer(base).encode("") == [start]
