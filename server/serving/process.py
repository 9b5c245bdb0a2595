"""Latency and memory tuning of the serving process: thread switches, garbage collection, heap trimming."""

from __future__ import annotations

import ctypes
import gc
import sys

# An engine step releases the GIL at each of its hundreds of tensor operations, and a busy event loop keeps it for this
# long each time. At Python's default of 5 ms a step beside a busy loop takes seconds.
_SWITCH_S = 0.0001
_SLACK_NS = 1_000  # Linux's default timer slack is 50 microseconds
_PR_SET_TIMERSLACK = 29


def share_the_interpreter() -> None:
    """Shorten thread switching so that threads meet each other's deadlines. Existing threads keep their timer slack."""
    sys.setswitchinterval(_SWITCH_S)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_SLACK_NS), 0, 0, 0)


def spare_what_stays() -> None:
    """Collect garbage now, then freeze the remaining objects (libraries and the bundle), so that later collections skip
    them.

    A full collection holds the GIL while it visits every object, some tenths of a second once torch and transformers
    are imported. This is called when a bundle starts to serve or was released, so that collections in between visit
    little, and a released bundle's objects are found at the next call.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back_memory() -> None:
    """Return the heap's unused pages to the system (glibc only, which keeps them after a burst)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
