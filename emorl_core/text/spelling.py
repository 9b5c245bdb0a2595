"""Single tokens as text, spelled in the same way whether they were chosen or are alternatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emorl_core.text.detokenize import HALF, Decode

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Spelling:
    r"""The text that a token adds. The `data` of a text's tokens concatenate to its UTF-8 bytes.

    A token that is part of a character is spelled `bytes:\xe2\x80`, as OpenAI does; one that adds nothing, such as
    the end of sequence, by its name, and its `data` is empty.
    """

    text: str
    data: bytes
    special: bool = False

    @classmethod
    def of_bytes(cls, data: bytes) -> Spelling:
        try:
            return cls(data.decode(), data)
        except UnicodeDecodeError:
            return cls(f"bytes:{repr(data)[2:-1]}", data)

    @classmethod
    def of_name(cls, name: str) -> Spelling:
        return cls(name, b"", special=True)


class Speller:
    """Spells the tokens of a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any, decode: Decode) -> None:
        """decode: token ids -> text, special tokens left out."""
        self._tokenizer = tokenizer
        self._decode = decode
        self._letters = _byte_letters(tokenizer)
        self._known: dict[tuple[int, bool], Spelling] = {}  # at most two entries a token
        self._before = self._ordinary_token()

    def spell(self, token_id: int, *, first: bool) -> Spelling:
        """first: no ordinary token precedes it. Many tokenizers drop a text's leading space."""
        found = self._known.get((token_id, first))
        if found is None:
            found = self._known[token_id, first] = self._spell(token_id, first)
        return found

    def _spell(self, token_id: int, first: bool) -> Spelling:
        known = token_id < len(self._tokenizer)
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token_id) if known else None
        if piece is None:  # a row of the embedding beyond the vocabulary
            return Spelling.of_name(f"token_id:{token_id}")
        text = self._decode([*self._before, token_id])[len(self._decode(self._before)) :]
        if not text:
            return Spelling.of_name(piece)
        if HALF in text and (data := self._bytes(piece)) is not None:
            return Spelling.of_bytes(data)
        if first:
            text = self._decode([token_id])
        return Spelling(text, text.encode())

    def _bytes(self, piece: str) -> bytes | None:
        """The bytes of a piece in an encoded vocabulary."""
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if all(letter in self._letters for letter in piece):
            return bytes(self._letters[letter] for letter in piece)
        return None

    def _ordinary_token(self) -> Sequence[int]:
        """A token that prints a letter, to precede another one; empty in a vocabulary without any."""
        return next(([i] for i in range(len(self._tokenizer)) if self._decode([i])[-1:].isalpha()), [])


def _byte_letters(tokenizer: Any) -> dict[str, int]:
    """Character -> byte, for vocabularies in GPT-2's byte encoding; empty for others."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or b'"ByteLevel"' not in decoder.__getstate__():
        return {}
    return {letter: byte for byte, letter in bytes_to_unicode().items()}
