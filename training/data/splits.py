"""Splits by prompt. Records with the same prompt are always in the same part, whatever the order of rows.

A prompt's part depends on a hash of (seed, prompt) and on the fractions: adding a row moves as few others as possible,
and the split does not depend on the version of a random generator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from emorl_core.scorers.words import prompt_key
from training.data.records import DIALOGUE, DataError, Record

FRACTIONS: dict[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}  # method.md section 2

Splits = dict[str, tuple[Record, ...]]


def split_by_prompt(records: Iterable[Record], seed: int, fractions: Mapping[str, float] = FRACTIONS) -> Splits:
    """Parts in the order of `fractions`; within a part the records keep their order.

    Sizes are exact to one prompt (largest remainder); a part with a fraction above 0 gets at least one prompt.
    Raises `DataError`: fractions that are negative or do not sum to 1, or fewer prompts than parts.
    """
    check_fractions(fractions)
    records = tuple(records)
    keys = {record.prompt: prompt_key(record.prompt) for record in records}
    order = sorted(set(keys.values()), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    parts_wanted = [name for name, fraction in fractions.items() if fraction > 0]
    if len(order) < len(parts_wanted):
        raise DataError(
            f"{len(order)} distinct prompts cannot fill {len(parts_wanted)} parts ({', '.join(parts_wanted)})",
            param="fractions",
        )
    part_of: dict[str, str] = {}
    start = 0
    for name, size in sizes_of(len(order), fractions).items():
        part_of.update(dict.fromkeys(order[start : start + size], name))
        start += size
    return {name: tuple(record for record in records if part_of[keys[record.prompt]] == name) for name in fractions}


def check_disjoint(splits: Mapping[str, Sequence[Record]]) -> None:
    """Raises `DataError` if a prompt or a dialogue is in two parts; the message names the rows, not the text."""
    owner: dict[tuple[str, str], tuple[str, Record]] = {}
    shared: list[tuple[Record, str, Record, str]] = []
    for part, records in splits.items():
        for record in records:
            named = [("prompt", prompt_key(record.prompt)), (DIALOGUE, record.extras.get(DIALOGUE, ""))]
            found = [owner.setdefault(key, (part, record)) for key in named if key[1]]
            shared += [(first, other, record, part) for other, first in found if other != part][:1]
    if shared:
        first, other, record, part = shared[0]
        raise DataError(
            f"{len(shared)} records share their prompt or dialogue with another part; first: "
            f"{record.where or 'a record'} in {part!r} and {first.where or 'a record'} in {other!r}",
            param="splits",
        )


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises `DataError` for fractions that are negative or do not sum to 1."""
    if not fractions or any(not math.isfinite(value) or value < 0 for value in fractions.values()):
        raise DataError("fractions: allowed are finite numbers from 0", param="fractions")
    if abs(math.fsum(fractions.values()) - 1) > 1e-6:
        raise DataError(f"fractions sum to {math.fsum(fractions.values()):g}; they must sum to 1", param="fractions")


def sizes_of(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Integers that sum to `count`, as close to the fractions as possible, at least 1 where the fraction is above 0."""
    exact = {name: fraction * count for name, fraction in fractions.items()}
    sizes = {name: max(math.floor(value + 1e-9), int(value > 0)) for name, value in exact.items()}
    while (rest := count - sum(sizes.values())) != 0:
        step = 1 if rest > 0 else -1
        # Add to the part furthest below its share; remove from the part furthest above it that can spare one.
        movable = [name for name in sizes if fractions[name] > 0 and (step > 0 or sizes[name] > 1)]
        name = max(movable, key=lambda part: step * (exact[part] - sizes[part]))
        sizes[name] += step
    return sizes
