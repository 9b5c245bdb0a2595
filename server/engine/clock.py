"""The start time of the running step, readable from another process, since a process that hangs cannot report it."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable

_SINCE = struct.Struct("d")


class StepClock:
    """`time.monotonic()`, which all processes of a machine share, at the start of the running step; else 0."""

    def __init__(self, descriptor: int, *, now: Callable[[], float] = time.monotonic) -> None:
        """descriptor: of a file that holds one number; closed with this object."""
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
