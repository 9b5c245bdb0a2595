"""Replies side by side, to be read. The page contains prompts of the data, so it must stay in the run's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from emorl_core.scorers.words import prompt_key
from training.data.records import Record
from training.evaluation.reporting.results import MEAN, OBJECTIVES, Scored

Texts = Mapping[str, Mapping[int, Sequence[str]]]  # method -> seed -> one reply per held-out prompt


def sampled(records: Sequence[Record], count: int, seed: int) -> list[int]:
    """Indices of `count` prompts in the data's order, drawn by `seed` independently of that order."""
    order = sorted(
        range(len(records)), key=lambda i: hashlib.sha256(f"{seed}:{prompt_key(records[i].prompt)}".encode()).digest()
    )
    return sorted(order[:count])


def side_by_side(
    records: Sequence[Record],
    texts: Texts,
    cells: Mapping[str, Mapping[int, Scored]],
    *,
    count: int,
    seed: int = 0,
) -> str:
    """Markdown with a random choice of prompts. Each method is shown by its first finished seed, with the mean of its
    objectives' scores."""
    lines = [
        "# Side by side",
        "",
        f"{min(count, len(records))} of {len(records)} held-out prompts, drawn at random (seed {seed}); of every "
        "method its first seed. The number is the mean of the training rewards. This page holds the data's own text: "
        "mind its licence, and do not pass it on.",
    ]
    for place in sampled(records, count, seed):
        lines += ["", f"## Prompt {place + 1}", "", _quoted(records[place].prompt), ""]
        for method, by_seed in texts.items():
            first = next(iter(by_seed), None)
            if first is None:
                lines.append(f"- **{method}**: failed")
                continue
            score = cells[method][first].scores[OBJECTIVES][MEAN][place]
            lines.append(f"- **{method}** ({score:.2f}): {_plain(by_seed[first][place]) or '*(empty)*'}")
        for reference in records[place].references[:1]:
            lines.append(f"- *a reference of the data*: {_plain(reference)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in _plain(text).splitlines() or [""])


def _plain(text: str) -> str:
    """The text on one line, escaped for Markdown."""
    flat = " ".join(text.split())
    for mark in "\\`*_<>[]#|":
        flat = flat.replace(mark, f"\\{mark}")
    return flat
