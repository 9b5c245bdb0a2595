"""A whole search over the fake model, for tests that kill it."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import checked
from training.data.records import Record
from training.search.inputs import Inputs
from training.search.run import Outcome, SearchSettings, run_search

WORDS = "tired angry sad alone lost worried hurt stuck small numb empty tense".split()
RECORDS = tuple(Record(f"i feel {word} of it") for word in WORDS)


def fingerprint(prompt: str, text: str) -> str:
    return hashlib.sha256(f"{prompt}|{text}".encode()).hexdigest()


class Letters:
    """Share of some letters; counts its calls and can kill the process at one of them (one per level). Every text that
    was scored is told in the file `told`, by its hash."""

    def __init__(self, letters: str, kill_at: int = 0, told: Path | None = None) -> None:
        self.__name__ = letters
        self.kill_at = kill_at
        self.told = told
        self.calls = 0
        self.scored: list[tuple[str, str]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.scored += zip(prompts, completions, strict=True)
        if self.told is not None:
            with self.told.open("a") as file:
                file.writelines(fingerprint(*pair) + "\n" for pair in zip(prompts, completions, strict=True))
        return [sum(letter in self.__name__ for letter in text) / max(1, len(text)) for text in completions]


def inputs_of(*scorers: Letters) -> Inputs:
    named = {f"share_{scorer.__name__}": checked(scorer) for scorer in scorers}
    return Inputs(RECORDS[:5], RECORDS[5:], named, {name: {"kind": "test"} for name in named})


def run(folder: Path, scorer: Letters, *, resume: bool = False, ensemble: Ensemble | None = None) -> Outcome:
    settings = SearchSettings(space="cube", levels=3, max_new_tokens=6)
    ensemble = ensemble or fake_ensemble()
    return run_search(ensemble, inputs_of(scorer, Letters("xyz")), settings, folder, resume=resume)


def killed(folder: Path, kill_at: int, told: Path) -> None:
    run(folder, Letters("aeo", kill_at, told))
