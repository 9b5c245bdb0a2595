"""Weights on huge pages: a decoding step reads every weight once, and with pages of 4 KiB a CPU spends much of that
time on address translation (docs/log.md)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator

WORTH_FROM = 8 * 2**20  # bytes of weights: pages of 4 KiB that a CPU's address cache (TLB) holds all at once
_HUGE = 2 * 2**20
_PAGE = 4096
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the second since Linux 6.1


def use_huge_pages() -> int:
    """Move this process's large private memory to huge pages: now, or soon where the kernel only takes advice.

    Only 2 MiB ranges that are fully resident, so the process does not grow. Returns the bytes moved; 0 if there is
    nothing to gain or the system has no huge pages. Never fails.
    """
    if not sys.platform.startswith("linux") or os.sysconf("SC_PAGESIZE") != _PAGE:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    moved = 0
    for start in _stretches():
        resident = ctypes.create_string_buffer(_HUGE // _PAGE)
        if libc.mincore(start, _HUGE, resident) or not all(flags & 1 for flags in resident.raw):
            continue
        if libc.madvise(start, _HUGE, _MADV_COLLAPSE) == 0:
            moved += _HUGE
        else:
            libc.madvise(start, _HUGE, _MADV_HUGEPAGE)
    return moved


def _stretches() -> Iterator[int]:
    """Addresses of aligned 2 MiB within anonymous, writable, private memory."""
    try:
        with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
            lines = maps.readlines()
    except OSError:
        return
    for line in lines:
        bounds, mode, _, _, _, *name = line.split(maxsplit=5)
        if mode != "rw-p" or name not in ([], ["[heap]\n"]):
            continue
        low, high = (int(bound, 16) for bound in bounds.split("-"))
        yield from range(-(-low // _HUGE) * _HUGE, high // _HUGE * _HUGE, _HUGE)
