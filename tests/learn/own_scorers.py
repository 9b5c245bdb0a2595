"""Scorers as a user would write them, reached by dotted path."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

KILL_ONCE = "TESTS_KILL_ONCE"  # a variable that names a file: whoever finds it removes it, and dies

NOT_A_FUNCTION = 3


class AClass:
    pass


def share_of_letters(prompts: list[str], completions: list[str], letter: str = "a", **kwargs: Any) -> list[float]:
    return [text.count(letter) / max(1, len(text)) for text in completions]


def only_texts(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(prompt == completion) for prompt, completion in zip(prompts, completions, strict=True)]


def without_prompts(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


def share_of_letters_in_a_worker_that_may_die(prompts: list[str], completions: list[str]) -> list[float]:
    if KILL_ONCE in os.environ:
        try:
            Path(os.environ[KILL_ONCE]).unlink()
        except FileNotFoundError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return share_of_letters(prompts, completions)
