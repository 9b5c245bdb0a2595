"""A causal model's readings of pairs of prompt and reply: each pair is read once and stored on disk, so that
interrupted training can resume. The files identify pairs by hashes and contain no text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emorl_core.files.writing import replacing
from emorl_core.scorers.base import ScorerError
from emorl_core.scorers.judge import features_of
from emorl_core.scorers.states import StateReader

if TYPE_CHECKING:
    import torch

READINGS_FILE = "readings.json"
_SHARD = 800  # pairs per file, some half a minute of work
Text = tuple[str, str]  # (prompt, reply)


class Readings:
    """(prompt, reply) -> features. `fingerprint`: of everything that they depend on. Raises `ScorerError` for stored
    readings with another fingerprint."""

    def __init__(self, reader: StateReader, folder: Path, fingerprint: Mapping[str, object]) -> None:
        from safetensors.torch import load_file

        self._reader, self._folder = reader, folder
        self._places: dict[bytes, int] = {}
        self._rows: list[torch.Tensor] = []  # [F] each, in half precision, so that stored readings equal new ones
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / READINGS_FILE
        if about.is_file():
            if json.loads(about.read_text()) != fingerprint:
                raise ScorerError(
                    "resume: the interrupted run had another model; start again with overwrite", param="resume"
                )
        else:
            with replacing(about) as temporary:
                temporary.write_text(json.dumps(fingerprint))
        self._shards = sorted(folder.glob("*.safetensors"))
        for shard in self._shards:
            kept = load_file(shard)
            self._add(list(map(bytes, kept["keys"].numpy())), kept["features"])

    def of(self, texts: Sequence[Text], told: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """[texts, F]. told: called with the number of new texts read so far, and their total."""
        import torch

        new = [text for text in dict.fromkeys(texts) if _key(text) not in self._places]
        order: dict[str, list[Text]] = {}
        for text in new:
            order.setdefault(text[0], []).append(text)
        new = [text for own in order.values() for text in own]
        for start in range(0, len(new), _SHARD):
            self._read(new[start : start + _SHARD])
            if told is not None:
                told(min(len(new), start + _SHARD), len(new))
        return torch.stack([self._rows[self._places[_key(text)]] for text in texts]).float()

    def _read(self, texts: Sequence[Text]) -> None:
        import torch
        from safetensors.torch import save_file

        by_prompt: dict[str, list[str]] = {}
        for prompt, reply in texts:
            by_prompt.setdefault(prompt, []).append(reply)
        rows = [features_of(reading) for prompt, own in by_prompt.items() for reading in self._reader.read(prompt, own)]
        keys = [_key((prompt, reply)) for prompt, own in by_prompt.items() for reply in own]
        features = torch.stack(rows).clamp(-6e4, 6e4).half()
        shard = self._folder / f"{len(self._shards):05d}.safetensors"
        with replacing(shard) as temporary:
            save_file(
                {"keys": torch.tensor([list(key) for key in keys], dtype=torch.uint8), "features": features}, temporary
            )
        self._shards.append(shard)
        self._add(keys, features)

    def _add(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        for key, row in zip(keys, features, strict=True):
            self._places[key] = len(self._rows)
            self._rows.append(row)


def _key(text: Text) -> bytes:
    return hashlib.sha256(json.dumps(text).encode()).digest()
