"""A token by itself: its text as it stands in a text, its bytes, its name where it adds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from emorl_core.models.fake import FakeTokenizer
from emorl_core.text.detokenize import Decode
from emorl_core.text.spelling import Speller, Spelling
from tests.builders import tiny_tokenizer

TEXTS = (
    "I can't keep up with work.",
    "café naïve 🙂 Zürich",
    "👩‍👩‍👧 family 中文字符 и ещё",
    " you  feel   it ",
    "a",
    "",
)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: letters stand for bytes, and a space is part of the word after it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "c"), ("a", "n"), ("Ġc", "an"), ("ð", "Ł")]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *("".join(merge) for merge in merges), "<|end|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("two words", special=False)])
    return made


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's kind: a piece without ## begins a word."""
    words = ["[UNK]", "[SEP]", "you", "feel", "##ing", "tired", "a", "##b"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]")


def metaspace() -> PreTrainedTokenizerFast:
    """T5's own kind: sentencepiece without bytes."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁you", "▁can", "n", "'", "t", "▁é"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def decode_with(tokenizer: Any) -> Decode:
    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode


MAKERS = (tiny_tokenizer, byte_level, word_pieces, metaspace)


@pytest.mark.parametrize("make", MAKERS)
def test_the_spellings_of_a_texts_tokens_join_to_it(make: Any) -> None:
    tokenizer = make()
    decode, speller = decode_with(tokenizer), Speller(tokenizer, decode_with(tokenizer))
    for text in (*TEXTS, "you feeling tired ab", "you can't é"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        begun, data = False, b""
        for token_id in ids:
            spelling = speller.spell(token_id, first=not begun)
            data += spelling.data
            begun = begun or not spelling.special
        assert data.decode() == decode(ids)


@pytest.mark.parametrize("make", MAKERS)
def test_no_two_tokens_of_a_vocabulary_share_a_spelling_within_a_text(make: Any) -> None:
    tokenizer = make()
    speller = Speller(tokenizer, decode_with(tokenizer))
    texts = [speller.spell(i, first=False).text for i in range(len(tokenizer))]
    bytes_too = [text for text in texts if len(text) == 1 and text.isascii()]  # `a` the letter, and <0x61>
    assert len(set(texts)) >= len(texts) - len(bytes_too) // 2


def test_a_space_before_a_word_is_left_out_at_the_beginning_of_a_text() -> None:
    tokenizer = tiny_tokenizer()
    speller, can = Speller(tokenizer, decode_with(tokenizer)), tokenizer.get_vocab()["▁can't"]
    assert speller.spell(can, first=False) == Spelling(" can't", b" can't")
    assert speller.spell(can, first=True) == Spelling("can't", b"can't")


@pytest.mark.parametrize(
    ("make", "piece", "text", "data"),
    [
        (tiny_tokenizer, "<0xE2>", r"bytes:\xe2", b"\xe2"),
        (tiny_tokenizer, "<0x41>", "A", b"A"),
        (tiny_tokenizer, "</s>", "</s>", b""),
        (tiny_tokenizer, "[SEP]", "[SEP]", b""),
        (byte_level, "ðŁ", r"bytes:\xf0\x9f", b"\xf0\x9f"),
        (byte_level, "Ġcan", " can", b" can"),
        (byte_level, "<|end|>", "<|end|>", b""),
        (byte_level, "<think>", "<think>", b"<think>"),
        (byte_level, "two words", "two words", b"two words"),
        (word_pieces, "##ing", "ing", b"ing"),
        (word_pieces, "feel", " feel", b" feel"),
        (metaspace, "▁é", " é", " é".encode()),
        (metaspace, "<unk>", "<unk>", b""),
    ],
)
def test_every_kind_of_piece(make: Any, piece: str, text: str, data: bytes) -> None:
    tokenizer = make()
    spelling = Speller(tokenizer, decode_with(tokenizer)).spell(tokenizer.get_vocab()[piece], first=False)
    assert (spelling.text, spelling.data, spelling.special) == (text, data, not data)


def test_a_row_of_the_embedding_beyond_the_vocabulary_has_a_name() -> None:
    tokenizer = tiny_tokenizer()
    spelling = Speller(tokenizer, decode_with(tokenizer)).spell(len(tokenizer) + 5, first=False)
    assert spelling == Spelling(f"token_id:{len(tokenizer) + 5}", b"", special=True)


def test_the_fake_tokenizer_spells_too() -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode("🙂 tired é")
    assert b"".join(tokenizer.spell(i, first=False).data for i in ids).decode() == tokenizer.decode(ids)
    assert tokenizer.spell(ids[-1], first=False) == Spelling("</s>", b"", special=True)
