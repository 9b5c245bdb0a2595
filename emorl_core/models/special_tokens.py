"""Token ids with a meaning in a checkpoint's settings: the end of a text, and the start of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emorl_core.errors import UnsupportedModel, cut
from emorl_core.models.config import read_config, whole_number

_CONFIG, _GENERATION = "config.json", "generation_config.json"


def end_tokens(folder: Path, config: Mapping[str, Any], default: int | None = None) -> tuple[int, ...]:
    """Each of these ids ends a text; never empty. All lie within the vocabulary.

    They come from `generation_config.json` or, if missing or null there, from `config` (config.json). default: used if
    neither file has any.

    Raises:
        UnsupportedModel: not a token id, or no end of sequence, so that no text would end.
    """
    entries = _Entries(folder, config)
    file, value = entries.find("eos_token_id")
    allowed = f"allowed: a token id from 0 to {entries.rows - 1}, or a list of them"
    unsaid = value is None and not entries.have("eos_token_id")
    if unsaid:
        value = default
    ids = value if isinstance(value, list) else [value]
    if ids and all(map(entries.is_id, ids)):
        return tuple(dict.fromkeys(ids))
    if unsaid:
        files = f"neither {_CONFIG} nor {_GENERATION}"
        raise UnsupportedModel(f"{folder}: {files} has eos_token_id, so no text would end; {allowed}")
    raise UnsupportedModel(f"{file}: eos_token_id is {cut(value)}; {allowed}")


def decoder_start(folder: Path, config: Mapping[str, Any]) -> int:
    """The start token of an encoder-decoder's decoder. Files and errors as in `end_tokens`."""
    entries = _Entries(folder, config)
    pad, start = entries.one("pad_token_id"), entries.one("decoder_start_token_id")
    return start if start is not None else pad or 0


class _Entries:
    """Both files merged; `generation_config.json` takes precedence, as in transformers."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.rows = whole_number(config, "vocab_size")
        self._sources = {_CONFIG: config}
        if (folder / _GENERATION).is_file():
            self._sources = {_GENERATION: read_config(folder, _GENERATION), _CONFIG: config}

    def find(self, key: str) -> tuple[str, Any]:
        """(file, value) of the first file whose value is not null."""
        for file, values in self._sources.items():
            if values.get(key) is not None:
                return file, values[key]
        return _CONFIG, None

    def have(self, key: str) -> bool:
        """Whether one of them has the key, null included."""
        return any(key in values for values in self._sources.values())

    def one(self, key: str) -> int | None:
        file, value = self.find(key)
        if value is not None and not self.is_id(value):
            raise UnsupportedModel(f"{file}: {key} is {cut(value)}; allowed: a token id from 0 to {self.rows - 1}")
        return value

    def is_id(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self.rows
