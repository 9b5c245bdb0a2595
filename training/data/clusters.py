"""Clusters of records: those of one dialogue or with one prompt. They are the units of splits and of the bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from emorl_core.scorers.words import prompt_key
from training.data.records import DIALOGUE, Record
from training.data.splits import Splits, split_by_prompt

# For a scorer's data. More is held out than of a policy's prompts, because some rows of the exam have few replies.
SCORER_FRACTIONS: dict[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}


def clusters_of(records: Sequence[Record]) -> list[str]:
    """One cluster name per record. Dialogues that share a prompt are one cluster, whatever else they contain."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = name = leader[leader[name]]
        return name

    own = [prompt_key(record.prompt) for record in records]
    for name, record in zip(own, records, strict=True):
        if dialogue := record.extras.get(DIALOGUE):
            leader[find(name)] = find(f"{DIALOGUE} {dialogue}")
    return [find(name) for name in own]


def split_by_cluster(records: Iterable[Record], seed: int, fractions: Mapping[str, float] = SCORER_FRACTIONS) -> Splits:
    """As `split_by_prompt`, but clusters stay whole; fractions are of clusters. Raises `DataError`."""
    records = tuple(records)
    clusters = clusters_of(records)
    parts = split_by_prompt([Record(cluster) for cluster in dict.fromkeys(clusters)], seed, fractions)
    part_of = {record.prompt: part for part, own in parts.items() for record in own}
    return {
        part: tuple(record for record, cluster in zip(records, clusters, strict=True) if part_of[cluster] == part)
        for part in parts
    }
