"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere (a log, a CI job)."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts `total` steps of something.

    ```python
    with Progress("prompts", total=200) as progress:
        progress.step()
    ```
    """

    PLAIN_EVERY_S = 5.0  # seconds between lines where there is no terminal

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._bar = None
        self._last_line = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._done == self._total or time.monotonic() - self._last_line >= self.PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            print(f"{self._what}: {self._done} of {self._total}", file=sys.stderr, flush=True)
