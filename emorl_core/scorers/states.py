"""A causal language model's reading of a reply: its hidden states, and each token's likelihood after this prompt and
after another client's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from emorl_core.scorers.passes import Dtype, Kept, ModelPasses, PassesAfter

if TYPE_CHECKING:
    import torch

# An invented prompt: a reply that is as likely after this one is likely after any.
ELSEWHERE = "I lost my job in March and now I sit at home."
_LONGEST = 192  # tokens of prompt and reply, half each: the end of the prompt, the beginning of the reply


@dataclass(frozen=True, slots=True)
class Reading:
    """For a reply of T tokens: `means` [D], the mean over its tokens of the states in the middle layer; `changed` [D],
    its difference from the mean after another client's prompt; `likely`, `other_likely` [T + 1], log-likelihoods of the
    tokens and the end after the two prompts."""

    means: torch.Tensor
    changed: torch.Tensor
    likely: torch.Tensor
    other_likely: torch.Tensor


class StateReader:
    """A causal model that reads replies. A call that was made before is not computed again, so judges that share a
    reader read each reply once. Raises `ScorerError` for a model without a trained head."""

    def __init__(self, where: str, revision: str | None, *, device: str, dtype: Dtype) -> None:
        self.passes = ModelPasses(where, revision, device=device, dtype=dtype, max_length=None)
        self._half = min(_LONGEST, self.passes.max_length) // 2
        self._opening, self._closing, self._end = self._ids("Client:"), self._ids("\nCounselor:"), self._ids("\n")[-1:]
        self._elsewhere = PassesAfter(self.passes, self._context(ELSEWHERE))
        self._kept: Kept[Reading] = Kept()
        self._lock = threading.Lock()  # a server asks its judges from several threads

    @property
    def width(self) -> int:
        """D."""
        return int(self.passes.model.config.get_text_config().hidden_size)

    def read(self, prompt: str, replies: Sequence[str]) -> list[Reading]:
        """One per reply, in order."""
        call = (prompt, tuple(replies))
        with self._lock:
            found = self._kept.get(call)
            if found is None:
                found = self._read(prompt, replies)
                self._kept.put(call, found)
            return found

    def _read(self, prompt: str, replies: Sequence[str]) -> list[Reading]:
        ids = [(*self._ids(f" {reply}")[: self._half - len(self._end)], *self._end) for reply in replies]
        here = self.passes.after(self.passes.context(self._context(prompt)), ids)
        return [
            Reading(own.means, own.means - other.means, own.likely, other.likely)
            for own, other in zip(here, self._elsewhere.read(ids), strict=True)
        ]

    def _ids(self, text: str) -> list[int]:
        return list(self.passes.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _context(self, prompt: str) -> list[int]:
        room = self._half - len(self._opening) - len(self._closing)
        return [*self._opening, *self._ids(f" {prompt}")[-room:], *self._closing]


_shared: WeakValueDictionary[tuple[object, ...], StateReader] = WeakValueDictionary()


def shared_reader(where: str, revision: str | None, *, device: str, dtype: Dtype) -> StateReader:
    """The reader of all judges in this process that use the same model. Raises like `StateReader`."""
    files = sorted(Path(where).iterdir()) if Path(where).is_dir() else []  # a folder's files may be replaced
    marks = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    key = (where, marks, revision, device, dtype)
    reader = _shared.get(key)
    if reader is None:
        reader = _shared[key] = StateReader(where, revision, device=device, dtype=dtype)
    return reader
