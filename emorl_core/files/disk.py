"""Recognises a full disk in the errors of the libraries that write files."""

from __future__ import annotations

import errno
import os
import re

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, over the maximum file size
_NUMBER = re.compile(r"(?:os error |Errno )(\d+)")  # safetensors and tokenizers; shutil's list of failed copies
# torch's zip writer loses the errno; these are its messages.
_TORCH = re.compile(r"PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos")


def disk_full(error: BaseException) -> str | None:
    """The system's message ("No space left on device") if a file could not be written completely; None for other
    errors."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if (reason := _reason(found)) is not None:
            return reason
        found = found.__cause__ or found.__context__
    return "it was cut short" if _TORCH.search(str(error)) else None


def _reason(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in _FULL else None
    text = str(error)
    numbers = {int(number) for number in _NUMBER.findall(text)}
    return next((os.strerror(n) for n in _FULL if n in numbers or os.strerror(n) in text), None)
