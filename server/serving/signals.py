"""Handles SIGHUP and SIGTERM from process start, before there is a server.

Imports nothing slow.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def stand_by() -> None:
    """Call it before anything slow. From now on a SIGHUP is kept for the server, and SIGTERM exits at once, since there
    is nothing to drain yet. (As PID 1 of a container the process would ignore SIGTERM without this.)"""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


@contextmanager
def hangups_held() -> Iterator[None]:
    """Within the block a SIGHUP is kept for `hangups`; afterwards the previous handler is restored."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def hangups(heard: Callable[[], None]) -> Iterator[None]:
    """Within the block every SIGHUP calls `heard`, in the main thread between any two bytecodes; a kept one does so at
    once. Afterwards the previous handler is restored."""
    handler = signal.signal(signal.SIGHUP, lambda *_: heard())
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, handler)
