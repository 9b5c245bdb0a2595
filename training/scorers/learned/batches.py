"""The batches of an epoch from graded pairs, and the ranking loss.

All randomness comes from (seed, epoch), so an epoch can be repeated without the random state of earlier ones.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorl_core.scorers.words import prompt_key
from training.data.records import Record

if TYPE_CHECKING:
    import torch

WINDOW = 16  # batches within which texts are sorted by length


@dataclass(frozen=True, slots=True)
class Example:
    """A pair with its level; `group` is the prompt's number."""

    prompt: str
    response: str
    level: float
    group: int


def examples_of(records: Iterable[Record]) -> list[Example]:
    """One example per graded record."""
    groups: dict[str, int] = {}
    made: list[Example] = []
    for record in records:
        group = groups.setdefault(prompt_key(record.prompt), len(groups))
        made.append(Example(record.prompt, str(record.response), float(record.level or 0.0), group))
    return made


def plan_epoch(
    examples: Sequence[Example], seed: int, epoch: int, *, batch_size: int, mismatched: int | None
) -> list[list[Example]]:
    """The batches of one epoch, grouped by similar length: shuffled, sorted within windows, shuffled again.

    With `mismatched` the replies of a prompt stay together, and that many replies of other prompts are added; None:
    pairs are independent. The number of batches is the same in every epoch.
    """
    shuffle = random.Random(derived_seed(seed, epoch, "order"))
    units = [[example] for example in examples] if mismatched is None else _groups(examples, mismatched, shuffle)
    shuffle.shuffle(units)
    per_batch = max(1, batch_size // max(len(unit) for unit in units))
    batches: list[list[Example]] = []
    for start in range(0, len(units), WINDOW * per_batch):
        near = sorted(units[start : start + WINDOW * per_batch], key=_length)
        for at in range(0, len(near), per_batch):
            batches.append([example for unit in near[at : at + per_batch] for example in unit])
    shuffle.shuffle(batches)
    return batches


def margin_loss(scores: torch.Tensor, levels: torch.Tensor, groups: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over all pairs (i, j) of one group with level_i > level_j of
    max(0, margin·(level_i − level_j) − (s_i − s_j)).

    `scores`, `levels`, `groups`: [batch]. Zero (with zero gradient) if no group has two levels.
    """
    gap = levels[:, None] - levels[None, :]  # [batch, batch]
    wanted = (gap > 0) & (groups[:, None] == groups[None, :])
    short = (margin * gap - (scores[:, None] - scores[None, :])).clamp_min(0)
    return (short * wanted).sum() / wanted.sum().clamp_min(1)


def derived_seed(seed: int, epoch: int, what: str) -> int:
    """A separate seed for every epoch and purpose."""
    return random.Random(f"{seed}:{epoch}:{what}").getrandbits(63)


def _groups(examples: Sequence[Example], mismatched: int, draw: random.Random) -> list[list[Example]]:
    """The replies of each prompt, with replies of other prompts added as the lowest level."""
    held: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        held[example.group].append(example)
    top, lowest = max(example.level for example in examples), min(example.level for example in examples)
    good = [example for example in examples if example.level == top]
    units: list[list[Example]] = []
    for group, own in held.items():
        others: list[Example] = []
        while len(others) < mismatched and any(example.group != group for example in good):
            other = draw.choice(good)
            if other.group != group:
                others.append(Example(own[0].prompt, other.response, lowest, group))
        units.append(own + others)
    return units


def _length(unit: list[Example]) -> int:
    return max(len(example.prompt) + len(example.response) for example in unit)
