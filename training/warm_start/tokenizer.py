"""A small tokenizer trained on the data: unigram pieces in T5's layout (`<pad>` 0, `</s>` 1, `<unk>` 2), byte fallback.

Any text is encoded without `<unk>`: characters outside the pieces become UTF-8 bytes. "▁" marks the start of a word.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
WORD = "▁"
_RESERVED = 3 + len(BYTES)
_ASCII = string.ascii_letters + string.digits + string.punctuation
_LETTERS_ROOM = 128  # pieces kept for single characters; rarer characters become bytes


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    whole_tokens: Sequence[str] = (),
    subword_share: float = 0.25,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Train on `texts`. `vocab_size` counts everything: 3 special tokens, 256 bytes, `whole_tokens`, and the pieces.

    The most frequent words become single pieces; `subword_share` of the pieces are parts of words, for all other words.
    `whole_tokens` (such as "[SEP]") are always one token. The tokenizer saves to a folder that `AutoTokenizer` loads
    offline; it appends `</s>` like T5's. The vocabulary is smaller if the texts do not have enough pieces.

    Raises `ValueError` for a `vocab_size` that leaves no room for letters.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    room = vocab_size - _RESERVED - len(whole_tokens)
    if room < 2 * _LETTERS_ROOM:
        least = vocab_size - room + 2 * _LETTERS_ROOM
        raise ValueError(f"vocab_size is {vocab_size}; allowed: from {least}")
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex("[\u2018\u2019]"), "'"),
            normalizers.Replace(Regex("[\u201c\u201d]"), '"'),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=WORD, prepend_scheme="always", split=True),
            # A full stop is a separate piece; otherwise "boss" and "boss." would be unrelated tokens and hard to copy.
            # The apostrophe stays inside: "don't" is one word.
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}'▁]"), "isolated"),
        ]
    )
    counts = _count_words(texts, normalizer, pre_tokenizer)
    vocab = [*[(name, 0.0) for name in (PAD, EOS, UNK, *BYTES, *whole_tokens)], *_pieces(counts, room, subword_share)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK,
        additional_special_tokens=list(whole_tokens), model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _count_words(texts: Iterable[str], normalizer: Normalizer, pre_tokenizer: PreTokenizer) -> Counter[str]:
    # First a cheap split, then the exact one once per distinct word.
    raw = Counter(word for text in texts for word in text.split())
    counts: Counter[str] = Counter()
    for word, count in raw.items():
        for piece, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(word)):
            counts[piece] += count
    return counts


def _pieces(counts: Counter[str], room: int, subword_share: float) -> list[tuple[str, float]]:
    """At most `room` of (piece, log probability): letters, BPE parts of the distinct words, and whole words by
    frequency.

    The library's unigram trainer splits frequent words of a small corpus into letters; here a frequent word is one
    token by construction. Parts have equal, low scores, so other words are split into as few parts as possible.
    """
    from tokenizers import Tokenizer, models, trainers

    bpe = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=max(_LETTERS_ROOM, int(room * subword_share)), initial_alphabet=[WORD, *_ASCII],
        limit_alphabet=_LETTERS_ROOM - 20, show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(sorted(counts), trainer)
    parts = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    known = set(parts)
    words = sorted((word for word in counts if word not in known), key=lambda word: (-counts[word], word))
    words = words[: room - len(parts)]
    total = math.log(sum(counts.values()))
    score = {word: math.log(counts[word]) - total for word in words}
    low = min([0.0, *score.values()]) - 1.0
    return [*((part, low) for part in parts), *score.items()]
