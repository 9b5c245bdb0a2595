"""What the process that serves does about latency and memory: switches of threads, collections, the heap's rest."""

from __future__ import annotations

import ctypes
import gc
import sys

# An engine step gives the interpreter's lock up at each of its hundreds of tensor operations, and a busy event loop
# keeps it for this long each time: at Python's default of 5 ms a step beside a busy loop takes seconds.
_SWITCH_S = 0.0001
_SLACK_NS = 1_000  # Linux lets a timed wait end up to 50 microseconds late unless told otherwise
_PR_SET_TIMERSLACK = 29


def share_the_interpreter() -> None:
    """Make the threads of this process take turns often enough for each other's deadlines; threads that are there
    already keep their own timers."""
    sys.setswitchinterval(_SWITCH_S)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_SLACK_NS), 0, 0, 0)


def spare_what_stays() -> None:
    """Collect garbage now, and never again look through what is left: the libraries and the bundle that is served.

    A full collection holds the interpreter for as long as it takes to visit every object, some tenths of a second once
    torch and transformers are there. Called when a bundle has begun to serve or has gone, so that little is visited in
    between, and what a bundle leaves behind is found at the next call.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back_memory() -> None:
    """Return the heap's unused pages to the system; glibc keeps them after a burst, and only it is asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
