"""A whole search over the fake model, for tests that kill it: `python -m tests.learn.killed_search FOLDER [KILL_AT]`.

KILL_AT is the scorer call (one per level) at which the program kills itself with SIGKILL. Every text that was scored is
told on stdout, by its hash.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from training.data.records import Record
from training.scorers import checked
from training.search.inputs import Inputs
from training.search.run import Outcome, SearchSettings, run_search

WORDS = "tired angry sad alone lost worried hurt stuck small numb empty tense".split()
RECORDS = tuple(Record(f"i feel {word} of it") for word in WORDS)


def fingerprint(prompt: str, text: str) -> str:
    return hashlib.sha256(f"{prompt}|{text}".encode()).hexdigest()


class Letters:
    """Share of some letters; counts its calls and can end the program at one of them."""

    def __init__(self, letters: str, kill_at: int = 0) -> None:
        self.__name__ = letters
        self.kill_at = kill_at
        self.calls = 0
        self.scored: list[tuple[str, str]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.calls += 1
        if self.calls == self.kill_at:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.scored += zip(prompts, completions, strict=True)
        for prompt, text in zip(prompts, completions, strict=True):
            sys.stdout.write(fingerprint(prompt, text) + "\n")
        return [sum(letter in self.__name__ for letter in text) / max(1, len(text)) for text in completions]


def inputs_of(*scorers: Letters) -> Inputs:
    named = {f"share_{scorer.__name__}": checked(scorer) for scorer in scorers}
    return Inputs(RECORDS[:5], RECORDS[5:], named, {name: {"kind": "test"} for name in named})


def run(folder: Path, scorer: Letters, *, resume: bool = False, ensemble: Ensemble | None = None) -> Outcome:
    settings = SearchSettings(space="cube", levels=3, max_new_tokens=6)
    ensemble = ensemble or fake_ensemble()
    return run_search(ensemble, inputs_of(scorer, Letters("xyz")), settings, folder, resume=resume)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Letters("aeo", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
