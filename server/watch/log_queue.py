"""A queue of log lines, so that logging never blocks on a slow reader of the log."""

from __future__ import annotations

import io
import logging
import os
import queue
import re
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener

REASONS = ("queue", "rate", "format", "write")
_BURST_S = 10.0  # burst size, in seconds' worth of lines
_TELL_EVERY_S = 10.0

Write = Callable[[str], object]


class LineQueue(QueueHandler):
    """Formats where the line is logged and queues it. A line that finds the queue full is dropped and counted."""

    def __init__(self, formatter: logging.Formatter, most: int) -> None:
        self.lines: queue.Queue[logging.LogRecord] = queue.Queue(most)
        super().__init__(self.lines)
        self.setFormatter(formatter)
        self.dropped = Counter(dict.fromkeys(REASONS, 0))  # reason -> lines

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.lines.put_nowait(record)
        except queue.Full:
            self.dropped["queue"] += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002  logging's own name
        """Called for a line that cannot be formatted: logging would print its text to stderr, and block on its
        reader."""
        self.dropped["format"] += 1


class Seldom(logging.Filter):
    """Passes `per_second` lines of one kind, with bursts after a pause, and counts the others.

    A kind is a logger, a level and what a caller gives as `extra={"kind": …}`; a line of the kind None always passes.
    """

    def __init__(self, lines: LineQueue, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = lines
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_S)
        self._clock = clock
        # kind -> lines it may still log, and the time of that count
        self._left: dict[tuple[str, int, str], tuple[float, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        given: str | None = getattr(record, "kind", "")
        if given is None:
            return True
        kind, now = (record.name, record.levelno, given), self._clock()
        left, before = self._left.get(kind, (self._most, now))
        left = min(self._most, left + (now - before) * self._per_second)
        passes = left >= 1.0
        self._left[kind] = (left - 1.0 if passes else left, now)
        self._lines.dropped["rate"] += not passes
        return passes


class LogWriter(QueueListener):
    """The thread that writes a `LineQueue`'s lines and periodically the number of dropped ones."""

    def __init__(self, lines: LineQueue, write: Write) -> None:
        super().__init__(lines.lines)
        self._lines = lines
        self._write = write
        self._told = Counter(lines.dropped)
        self._told_at = -_TELL_EVERY_S

    def handle(self, record: logging.LogRecord) -> None:
        if not self._put(record.msg):
            self._lines.dropped["write"] += 1
        elif time.monotonic() >= self._told_at + _TELL_EVERY_S:
            self._tell_gap()

    def _put(self, line: str) -> bool:
        try:
            self._write(f"{line}\n")
        except (OSError, ValueError):  # the reader is gone
            return False
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything logged so far is written; False if the reader is too slow."""
        waiting = self._lines.lines
        with waiting.all_tasks_done:
            return waiting.all_tasks_done.wait_for(lambda: not waiting.unfinished_tasks, timeout_s)

    def stop(self, timeout_s: float = 0.0) -> None:
        """`flush`, then stop the thread. Lines not written by then are lost, and the thread is abandoned."""
        if self.flush(timeout_s):
            super().stop()
            self._tell_gap()

    def _tell_gap(self) -> None:
        missing = Counter(self._lines.dropped) - self._told
        if missing:
            self._told += missing
            self._told_at = time.monotonic()
            counts = ", ".join(f"{reason} {count}" for reason, count in missing.items())
            text = f"{missing.total()} log lines are missing here ({counts})"
            record = logging.LogRecord("emorl.logs", logging.WARNING, __file__, 0, text, None, None)
            self._put(self._lines.format(record))


class Printed(io.TextIOBase):
    """Replaces `sys.stderr`: text printed by libraries becomes log lines, so that they do not block either."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("stderr")
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = re.split(r"[\r\n]", self._begun + text)
        for line in lines:
            if line.strip():
                self._logger.warning("%s", line)
        return len(text)


def to_stderr() -> Write:
    """Writes to the descriptor under stderr, past Python's own buffer, whose lock, held by a write that waits for a
    reader, would abort the interpreter at its end."""
    if sys.stderr is None:  # closed by whoever started this process
        return lambda _: None
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):  # replaced by something without one
        return sys.stderr.write

    def write(line: str) -> None:
        left = line.encode("utf-8", "backslashreplace")
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:  # shared with a program that has made it non-blocking
                select.select((), (descriptor,), (), 1.0)

    return write


def dropped_lines() -> Counter[str]:
    """Reason -> number of lines that this process has dropped so far."""
    return sum(
        (Counter(each.dropped) for each in logging.getLogger().handlers if isinstance(each, LineQueue)), Counter()
    )
