"""Text <-> token ids, through the tokenizer that lies beside the base model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from emorl_core.errors import BundleError


class Tokenizer(Protocol):
    """`encode` adds the special tokens that the model was trained with; `decode` leaves special tokens out.

    `longest_token`: characters of the longest one, which bounds how much text a number of tokens can hold.
    """

    @property
    def longest_token(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class HuggingFaceTokenizer:
    """A Hugging Face tokenizer folder. Safe to call from several threads; decoding never waits for encoding."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # seconds to import, and only here

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{folder}: the tokenizer cannot be loaded: {reason}") from None
        self._rust = getattr(self._tokenizer, "backend_tokenizer", None)  # None: one that is written in Python
        if self._rust is not None:
            # The Rust tokenizer cannot be used while another thread changes it. From here on nobody does.
            self._rust.no_truncation()
            self._rust.no_padding()
        self._encoding = threading.Lock()
        self.longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)

    def encode(self, text: str) -> list[int]:
        if self._rust is not None:
            # A batch of one: only for batches other threads, the engine's among them, run meanwhile.
            return list(self._rust.encode_batch_fast([text], add_special_tokens=True)[0].ids)
        with self._encoding:
            return list(self._tokenizer.encode(text, add_special_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def __len__(self) -> int:
        return len(self._tokenizer)
