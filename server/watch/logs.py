"""Log lines for people or for machines. No clinical text: exceptions are shown by type and place, not by their text."""

from __future__ import annotations

import json
import logging
import sys
from types import TracebackType
from typing import TextIO

from server.settings import Settings

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Send everything from `settings.log_level` up to stderr (or `stream`), in `settings.log_format`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # Libraries speak at INFO of what our own lines say better; some of theirs hold URLs as they were sent.
    for name in ("uvicorn.error", "asyncio", "httpx", "huggingface_hub", "filelock", "transformers"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


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
        return json.dumps(fields, ensure_ascii=False, default=str)


def where(error: BaseException | None) -> str:
    """An exception's type and the innermost places it came through. Its text may hold a prompt, so it is left out."""
    if error is None:
        return ""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' < '.join(reversed(frames[-8:]))}"
