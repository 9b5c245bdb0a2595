"""Log formats for people or machines. No clinical text: exceptions are shown by type and location, without their
message."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from server.settings import Settings
from server.watch.log_queue import LineQueue, LogWriter, Seldom, Write

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@contextmanager
def logging_to(write: Write, settings: Settings) -> Iterator[LogWriter]:
    """Within the block, records from `log_level` up, including Python's warnings, go to `write` in `log_format`, on a
    separate thread. At the end it waits for the last lines, at most `log_flush_s`."""
    lines = LineQueue(
        JsonFormatter() if settings.log_format == "json" else ConsoleFormatter(), settings.log_queue_lines
    )
    if settings.log_lines_per_s:
        lines.addFilter(Seldom(lines, settings.log_lines_per_s))
    writer = LogWriter(lines, write)
    with everything_to(lines, logging.getLevelName(settings.log_level.upper())):
        writer.start()
        try:
            yield writer
        finally:
            writer.stop(settings.log_flush_s)


@contextmanager
def everything_to(handler: logging.Handler, level: int) -> Iterator[None]:
    """Within the block, one handler gets all records from `level` up, including Python's warnings."""
    root = logging.getLogger()
    handlers, before = list(root.handlers), root.level
    named = [each for each in logging.Logger.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    apart = [(each, list(each.handlers), each.propagate) for each in named if each.handlers]
    for each, _, _ in apart:  # libraries that write to stderr themselves
        each.handlers[:], each.propagate = [], True
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries' INFO lines repeat our own, and some contain URLs as they were sent.
    for name in ("uvicorn.error", "asyncio", "httpx", "huggingface_hub", "filelock", "transformers"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for each, own, propagate in apart:
            each.handlers[:], each.propagate = own, propagate
        root.handlers[:] = handlers
        root.setLevel(before)


class ConsoleFormatter(logging.Formatter):
    """`12:00:00 INFO    emorl.server: ready`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802  logging's own name
        return where(ei[1])


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what a caller passed as `extra={"facts": {…}}` is part of it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["exception"] = where(record.exc_info[1])
        elif record.exc_text:  # from another process, already formatted
            fields["exception"] = record.exc_text
        return json.dumps(fields, ensure_ascii=False, default=str)


def where(error: BaseException | None) -> str:
    """An exception's type and its innermost frames. Its message may contain a prompt, so it is left out."""
    if error is None:
        return ""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' < '.join(reversed(frames[-8:]))}"
