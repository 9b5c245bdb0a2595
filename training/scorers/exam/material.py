"""A data set prepared for examining or training a scorer: replies, their levels, and their clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from emorl_core.scorers.asking import Asked
from emorl_core.scorers.words import prompt_key, words
from training.data.clusters import clusters_of, split_by_cluster
from training.data.records import DataError, Record, RecordSet
from training.scorers.exam.nearest import nearest

_NEIGHBOURS = 10
Score = Callable[[Sequence[Asked], Sequence[str]], Sequence[float]]  # (what replies answer, replies) -> one number each


@dataclass(frozen=True)
class Material:
    """One part of a data set. `scale`: the levels of the whole set, lowest first; empty if it has none."""

    name: str
    records: tuple[Record, ...]
    scale: tuple[float, ...] = ()

    @cached_property
    def clusters(self) -> list[str]:
        return clusters_of(self.records)

    @cached_property
    def keys(self) -> list[str]:
        """The prompt key of each record (`prompt_key`)."""
        return [prompt_key(record.prompt) for record in self.records]

    @cached_property
    def lengths(self) -> list[int]:
        """Words of each reply."""
        return [len(words(str(record.response))) for record in self.records]

    @cached_property
    def good(self) -> list[int]:
        """The replies that count as good human replies: those of the highest level, or all if there are no levels."""
        return [at for at, record in enumerate(self.records) if not self.scale or record.level == self.scale[-1]]

    @cached_property
    def by_prompt(self) -> dict[str, list[int]]:
        """Prompt key -> its records."""
        held: dict[str, list[int]] = {}
        for at, key in enumerate(self.keys):
            held.setdefault(key, []).append(at)
        return held

    @cached_property
    def ranked_within(self) -> bool:
        """Whether most prompts have replies of several levels, as PAIR's do."""
        several = sum(len({self.records[at].level for at in own}) > 1 for own in self.by_prompt.values())
        return bool(self.scale) and several * 2 > len(self.by_prompt)

    @cached_property
    def above_lowest(self) -> list[int]:
        """The replies above the lowest level; all if there are fewer than two levels."""
        several = len(self.scale) > 1
        return [at for at, record in enumerate(self.records) if not several or record.level != self.scale[0]]

    @cached_property
    def near(self) -> dict[int, list[int]]:
        """For each record of `above_lowest`, the records of other clients with the most similar prompts, nearest
        first."""
        own = self.above_lowest
        found = nearest([self.records[at].prompt for at in own], [self.clusters[at] for at in own], count=_NEIGHBOURS)
        return {at: [own[other] for other in others] for at, others in zip(own, found, strict=True)}

    def like_in_length(self, to: int, others: Sequence[int]) -> int:
        """The reply among `others` whose length is closest to that of record `to`."""
        return min(others, key=lambda at: (abs(self.lengths[at] - self.lengths[to]), at))


def parts_of(data: RecordSet, seed: int) -> dict[str, Material]:
    """The data set, split by dialogue or prompt. Raises `DataError` for a record without a reply, or some with levels
    and some without."""
    for record in data.records:
        if record.response is None:
            raise DataError(f"{record.where or data.name}: no response; a scorer is asked about replies", param="data")
        if (record.level is None) != (data.records[0].level is None):
            raise DataError(f"{record.where or data.name}: has {_has(record)}, the others differ", param="data")
    scale = tuple(sorted({record.level for record in data.records if record.level is not None}))
    parts = split_by_cluster(data.records, seed)
    return {part: Material(data.name, own, scale) for part, own in parts.items()}


def _has(record: Record) -> str:
    return "no level" if record.level is None else "a level"
