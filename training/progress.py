"""How long work tells what it is doing: callbacks of whoever started it, and nothing from the libraries below."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]  # (stage, done, total)
FitProgress = Callable[[int, int, float], None]  # (steps done, steps in all, loss of the last ones)
Say = Callable[[str], None]  # one line for people


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and remarks on the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
