"""Since when a step runs, readable from another process: one that hangs cannot say so itself."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable

_SINCE = struct.Struct("d")


class StepClock:
    """`time.monotonic()` at the beginning of the step in progress, which all processes of a machine share; else 0."""

    def __init__(self, descriptor: int, *, now: Callable[[], float] = time.monotonic) -> None:
        """descriptor: of a file of one number, which it closes."""
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SINCE.size)
        self._now = now

    @classmethod
    def create(cls, *, now: Callable[[], float] = time.monotonic) -> StepClock:
        with tempfile.TemporaryFile() as file:
            file.write(_SINCE.pack(0.0))
            file.flush()
            return cls(os.dup(file.fileno()), now=now)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def begin(self) -> None:
        _SINCE.pack_into(self._memory, 0, self._now())

    def end(self) -> None:
        _SINCE.pack_into(self._memory, 0, 0.0)

    def running_for_s(self) -> float:
        (since,) = _SINCE.unpack_from(self._memory, 0)
        return self._now() - since if since else 0.0
