"""Text <-> token ids, through the tokenizer that lies beside the base model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from emorl_core.errors import BundleError
from emorl_core.spelling import Speller, Spelling


class Tokenizer(Protocol):
    """`encode` adds the special tokens that the model was trained with; `decode` leaves special tokens out.

    `spell`: one token by itself; `first`: nothing ordinary comes before it in the text.
    """

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def spell(self, token_id: int, *, first: bool) -> Spelling: ...


class HuggingFaceTokenizer:
    """A Hugging Face tokenizer folder. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # seconds to import, and only here

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{folder}: the tokenizer cannot be loaded: {reason}") from None
        # The Rust tokenizer refuses to be borrowed by two threads while one changes its padding or truncation.
        self._lock = threading.Lock()
        self._speller = Speller(self._tokenizer, self.decode)

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        with self._lock:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def spell(self, token_id: int, *, first: bool) -> Spelling:
        return self._speller.spell(token_id, first=first)

    def __len__(self) -> int:
        return len(self._tokenizer)
