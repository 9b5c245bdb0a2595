"""Checks that a tokenizer belongs to the model beside it, whenever a base is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.errors import BundleError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE = "spiece.model"
_SENTINELS = 100  # T5's `<extra_id_0>` ... `<extra_id_99>`, which its tokenizer adds to the pieces of the file
_LEAST_SHARE = 0.25  # of the embedding's rows; ByT5 fills two thirds, T5's words an eighth of mT5's rows
_SAMPLE = 64  # words that are tried
_LEAST_KNOWN = 0.5  # of the sample
_BLANK = "▁Ġ \t\r\n"  # how vocabularies write a space


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """It is normal to have fewer entries than embedding rows: T5 has 32,100 for 32,128.

    Raises:
        BundleError: nothing to encode with, ids without a row, or another model's vocabulary.
    """
    from emorl_core.models.config import read_config, whole_number
    from emorl_core.models.registry import family_of

    config = read_config(folder)
    rows, ends = whole_number(config, "vocab_size"), family_of(config).end_tokens(folder, config)
    vocabulary = tokenizer.get_vocab()
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = [i for piece, i in vocabulary.items() if i not in special and piece.strip(_BLANK)]
    if not words:
        raise BundleError(
            f"{folder}: the tokenizer knows no words; a base has its tokenizer's files beside it: tokenizer.json or"
            f" {SENTENCEPIECE}, and tokenizer_config.json"
        )
    entries, last = len(vocabulary), max(vocabulary.values())
    if last >= rows:
        lost = "" if (folder / "tokenizer_config.json").is_file() else "; tokenizer_config.json is missing"
        raise BundleError(
            f"{folder}: the tokenizer has {entries} entries with ids up to {last}; the base's vocabulary has"
            f" {rows}{lost}"
        )
    if entries < _LEAST_SHARE * rows:
        raise BundleError(
            f"{folder}: the tokenizer has {entries} entries and the base's vocabulary {rows}; it is another model's"
        )
    try:
        around = tokenizer.encode("", add_special_tokens=True)  # what every text gets
        known = _share_known(tokenizer, sorted(words), special)
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise BundleError(f"{folder}: the tokenizer cannot encode every text: {one_line(error)}") from None
    behind = [i for i in around if i != tokenizer.bos_token_id]  # decoder-only models put a start before every text
    end = behind[-1] if behind else tokenizer.eos_token_id
    if end not in ends:
        raise BundleError(
            f"{folder}: the tokenizer ends a text with {'no token' if end is None else f'token {end}'} and the base"
            f" with {' or '.join(map(str, ends))} (eos_token_id); it is another model's"
        )
    if max(around, default=0) >= rows:
        raise BundleError(f"{folder}: the tokenizer adds token {max(around)}; the base's vocabulary has {rows}")
    if known < _LEAST_KNOWN:
        raise BundleError(f"{folder}: the tokenizer does not know its own words; most texts become unknown tokens")


def _share_known(tokenizer: PreTrainedTokenizerBase, words: list[int], special: set[int]) -> float:
    """The share of a sample of words that are not encoded as unknown tokens."""
    tokenizer.encode("\U0010fffd")  # a character that no vocabulary has
    tried = known = 0
    for word in words[:: max(1, len(words) // _SAMPLE)]:
        text = tokenizer.decode([word]).strip()
        if text:
            tried += 1
            known += any(i not in special for i in tokenizer.encode(text, add_special_tokens=False))
    return known / tried if tried else 0.0


def is_of_library(error: BaseException) -> bool:
    """Whether a tokenizer's file is at fault. Rust panics arrive as an exception that is not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def sentencepiece_options(folder: Path) -> dict[str, Any]:
    """The arguments with which transformers builds T5's tokenizer from `spiece.model` alone: mT5's pieces fill the
    embedding, so a hundred extra sentinels would have no rows.

    Raises:
        BundleError: the file is no sentencepiece model.
    """
    from emorl_core.models.config import read_config, whole_number

    path = folder / SENTENCEPIECE
    if not path.is_file():
        return {}
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_file=str(path)).get_piece_size()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{folder}: {SENTENCEPIECE} cannot be read as sentencepiece: {one_line(error)}") from None
    settings = read_config(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    fits = pieces + _SENTINELS <= whole_number(read_config(folder), "vocab_size")
    return {} if fits or "extra_ids" in settings else {"extra_ids": 0}
