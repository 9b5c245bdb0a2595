"""Sequences of different lengths in one pass, side by side without padding: linear layers run over all tokens at once,
attention over runs of sequences of equal size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(sizes: Sequence[tuple[int, ...]], limits: tuple[int, ...]) -> Iterator[list[int]]:
    """Which sequences run in one pass, by number. Those of equal size are adjacent. The sums of a pass's sizes are
    within the limits, unless it has a single sequence."""
    batch: list[int] = []
    totals = [0] * len(limits)
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        totals = [total + size for total, size in zip(totals, sizes[i], strict=True)]
        if batch and any(total > limit for total, limit in zip(totals, limits, strict=True)):
            yield batch
            batch, totals = [], list(sizes[i])
        batch.append(i)
    if batch:
        yield batch
