"""Progress of long work on stderr: a bar on a terminal, periodic lines elsewhere (a log, a CI job)."""

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

    PLAIN_EVERY_S = 5.0  # seconds between lines without a terminal

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
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        """This many are done by now."""
        news, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.update(news)
        elif news and (done == self._total or time.monotonic() - self._last_line >= self.PLAIN_EVERY_S):
            self._last_line = time.monotonic()
            print(f"{self._what}: {done} of {self._total}", file=sys.stderr, flush=True)


class Stages:
    """Progress of work in consecutive stages, each with a name and a total; called with (stage, done, total)."""

    def __init__(self) -> None:
        self._stage: tuple[str, int] | None = None
        self._progress: Progress | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._progress is not None:
            self._progress.__exit__()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if (stage, total) != self._stage or self._progress is None:
            self.__exit__()
            self._stage, self._progress = (stage, total), Progress(stage, total)
        self._progress.reach(done)
