"""Text <-> token ids, through the base model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from emorl_core.errors import BundleError, one_line
from emorl_core.files.reading import LFS_ADVICE, is_lfs_pointer
from emorl_core.text.chat import Chat, ChatTemplate
from emorl_core.text.control_tokens import prompt_encoder
from emorl_core.text.spelling import Speller, Spelling
from emorl_core.text.vocabulary import check_vocabulary, is_of_library, sentencepiece_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FAST = "tokenizer.json"
_FILES = (
    "config.json", _FAST, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip


class Tokenizer(Protocol):
    """Encoding adds the special tokens that the model was trained with, and decoding leaves them out.

    `longest_token`: characters of the longest one, which bounds how much text a number of tokens can hold.
    `spell`: one token by itself; `first`: nothing ordinary comes before it in the text.
    """

    @property
    def longest_token(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Encode a trusted text, in which the name of a control token is that token."""

    def encode_prompt(self, prompt: str, before: str = "", after: str = "") -> list[int]:
        """Encode an untrusted text between the parts of a template; only those can produce control tokens."""

    def encode_reply(self, text: str) -> list[int]:
        """Encode a text that continues a prompt: no special tokens are added, and names of control tokens are plain
        text."""

    def chat(self, system: str | None) -> Chat:
        """system: the system message of chats without one. Raises BundleError if there is no usable chat template."""

    def count(self, text: str) -> int:
        """The number of tokens of a text, including control tokens; cheaper than any `encode`."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def spell(self, token_id: int, *, first: bool) -> Spelling: ...


class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face checkpoint folder. Thread-safe, without locking.

    Raises as `load_tokenizer`.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._encoder = prompt_encoder(self._tokenizer)
        self.longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._speller = Speller(self._tokenizer, self.decode)

    def encode(self, text: str) -> list[int]:
        return self._encoder.encode(text, "", "")

    def encode_prompt(self, prompt: str, before: str = "", after: str = "") -> list[int]:
        return self._encoder.encode(before, prompt, after)

    def encode_reply(self, text: str) -> list[int]:
        return self._encoder.encode("", text, "", whole=False)

    def count(self, text: str) -> int:
        return self._encoder.count(text)

    def chat(self, system: str | None) -> ChatTemplate:
        return ChatTemplate(self._tokenizer, system=system)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def spell(self, token_id: int, *, first: bool) -> Spelling:
        return self._speller.spell(token_id, first=first)

    def __len__(self) -> int:
        return len(self._tokenizer)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model in the folder.

    Raises:
        BundleError: no tokenizer, one that cannot be read, or another model's.
    """
    from transformers import AutoTokenizer  # seconds to import, and only here

    for name in _FILES:
        if is_lfs_pointer(folder / name):
            raise BundleError(f"{folder}: {name} {LFS_ADVICE}")
    options = {} if (folder / _FAST).exists() else sentencepiece_options(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **options
        )
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise BundleError(f"{folder}: the tokenizer cannot be loaded: {_reason(folder, error)}") from None
    check_vocabulary(folder, tokenizer)
    return tokenizer


def _reason(folder: Path, error: BaseException) -> str:
    """One line; names the file that is at fault where one is."""
    from tokenizers import Tokenizer, __version__

    for name in _FILES:
        path = folder / name
        if path.suffix != ".json" or not (path.is_file() or path.is_dir()):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as broken:
            return f"{name} cannot be read as JSON: {one_line(broken)}"
        if not isinstance(content, dict):
            return f"{name} must be a JSON object"
    if (folder / _FAST).is_file():
        try:
            Tokenizer.from_file(str(folder / _FAST))
        except BaseException as unknown:
            if not is_of_library(unknown):
                raise
            why = f"so a newer release may have written it: {one_line(unknown)}"
            return f"{_FAST} is not understood by tokenizers {__version__}, {why}"
    return one_line(error)
