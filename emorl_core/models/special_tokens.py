"""The token ids that a checkpoint's own settings give a meaning: the end of a text, and what decoding starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emorl_core.errors import UnsupportedModel, cut
from emorl_core.models.config import read_config, whole_number

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_T5_END = 1  # what transformers assumes for T5 where no file names one


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`eos`: each of them ends a text; never empty. All ids lie within the vocabulary."""

    eos: tuple[int, ...]
    decoder_start: int

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> SpecialTokens:
        """From `generation_config.json`; what it leaves out or sets to null, from `config` (config.json).

        Raises:
            UnsupportedModel: an id outside the vocabulary, or no end of sequence, so that no text would end.
        """
        entries = _Entries(folder, config)
        pad = entries.one("pad_token_id")
        start = entries.one("decoder_start_token_id")
        return cls(entries.end(), start if start is not None else pad or 0)


class _Entries:
    """Both files as one; `generation_config.json` wins, as in transformers."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._rows = whole_number(config, "vocab_size")
        self._sources = {_CONFIG: config}
        if (folder / _GENERATION).is_file():
            self._sources = {_GENERATION: read_config(folder, _GENERATION), _CONFIG: config}

    def _find(self, key: str) -> tuple[str, Any]:
        """(file, value) of the first file whose value is not null."""
        for file, values in self._sources.items():
            if values.get(key) is not None:
                return file, values[key]
        return _CONFIG, None

    def one(self, key: str) -> int | None:
        file, value = self._find(key)
        if value is not None and not self._is_id(value):
            raise UnsupportedModel(f"{file}: {key} is {cut(value)}; allowed: a token id from 0 to {self._rows - 1}")
        return value

    def end(self) -> tuple[int, ...]:
        file, value = self._find("eos_token_id")
        if value is None and not any("eos_token_id" in values for values in self._sources.values()):
            value = _T5_END
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(map(self._is_id, ids)):
            raise UnsupportedModel(
                f"{file}: eos_token_id is {cut(value)}; allowed: a token id from 0 to"
                f" {self._rows - 1}, or a list of them"
            )
        return tuple(dict.fromkeys(ids))

    def _is_id(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self._rows
