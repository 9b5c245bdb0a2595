"""SIGHUP and SIGTERM from the process's first instant on, long before there is a server to take them.

Imports nothing that is slow.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def stand_by() -> None:
    """Call it before anything slow. A SIGHUP waits from now on for the server that will take it, and SIGTERM ends the
    process: it holds nothing yet. (As a container's first process it would not even hear SIGTERM without this.)"""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


@contextmanager
def hangups_held() -> Iterator[None]:
    """Within it a SIGHUP waits for `hangups`; after it, what was before."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def hangups(heard: Callable[[], None]) -> Iterator[None]:
    """Within it every SIGHUP calls `heard`, in the main thread between any two steps; one that waited does so at once.
    Before and after it, what was before."""
    handler = signal.signal(signal.SIGHUP, lambda *_: heard())
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, handler)
