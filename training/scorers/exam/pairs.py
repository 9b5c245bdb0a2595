"""Pairs of replies of which the first should score higher, for every row of the exam except constants."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.data.corruptions import CORRUPTIONS, corrupt
from training.data.records import Record
from training.scorers.exam.material import Material

OWN, NEAR = "own over another client's", "own over another client's, nearest prompts"
CONSTANT = "human over the best constant"
MATCHED = ", matched in length"
MATCH = 1.25  # lengths whose ratio is at most this are similar
_THREE_LEVELS = ("low", "medium", "high")


@dataclass(frozen=True, slots=True)
class Pair:
    """`better` answers `about`; `worse` answers `worse_about`, a different record only in comparisons across
    prompts."""

    row: str
    cluster: str
    about: Record
    better: str
    worse: str
    worse_about: Record


def own_pairs(material: Material, *, most: int, seed: int, held_out: bool) -> list[Pair]:
    """All pairs for single good replies, of which `most` are drawn at random, each with its cluster.

    held_out: corrupt replies with the phrases and forms that are never used in training.
    """
    draw = random.Random(f"{seed}:{material.name}:own")
    places = draw.sample(range(len(material.good)), min(most, len(material.good)))
    made: list[Pair] = []
    for place in places:
        made += _of_one(material, place, draw, held_out)
    return made


def _of_one(material: Material, place: int, draw: random.Random, held_out: bool) -> Iterator[Pair]:
    at = material.good[place]
    record, cluster = material.records[at], material.clusters[at]
    reply = str(record.response)

    def pair(row: str, worse: str) -> Pair:
        return Pair(row, cluster, record, reply, worse, record)

    strangers = [other for other in material.good if material.clusters[other] != cluster]
    if strangers:
        yield pair(OWN, str(material.records[draw.choice(strangers)].response))
    near = [other for other in material.near[at] if other in strangers]
    if near:
        yield pair(NEAR, str(material.records[near[0]].response))
    for name in CORRUPTIONS:
        spoilt = corrupt(name, record.prompt, reply, draw, held_out=held_out)
        if spoilt is not None:
            yield pair(f"own over {name}", spoilt)


def ranked_pairs(material: Material) -> list[Pair]:
    """Pairs of adjacent levels within a prompt, and those of similar length again as a row of their own."""
    made: list[Pair] = []
    for own in material.by_prompt.values():
        for high in own:
            for low in own:
                better, worse = material.records[high], material.records[low]
                if (
                    better.level is None
                    or worse.level is None
                    or not _follow(material.scale, worse.level, better.level)
                ):
                    continue
                row = _between(material.scale, better.level, worse.level)
                pair = Pair(row, material.clusters[high], better, str(better.response), str(worse.response), better)
                made.append(pair)
                if alike(material.lengths[high], material.lengths[low]):
                    matched = Pair(row + MATCHED, pair.cluster, better, pair.better, pair.worse, better)
                    made.append(matched)
    return made


def alike(one: int, other: int) -> bool:
    """Whether two lengths in words are similar."""
    return max(one, other) <= MATCH * max(1, min(one, other))


def constant_pairs(material: Material, constant: str, *, most: int, seed: int) -> list[Pair]:
    """Good replies against one constant reply."""
    draw = random.Random(f"{seed}:{material.name}:constant")
    chosen = draw.sample(material.good, min(most, len(material.good)))
    return [
        Pair(CONSTANT, material.clusters[at], material.records[at], str(material.records[at].response), constant,
             material.records[at])
        for at in chosen
    ]  # fmt: skip


def _follow(scale: Sequence[float], low: float, high: float) -> bool:
    return scale.index(high) == scale.index(low) + 1


def _between(scale: Sequence[float], high: float, low: float) -> str:
    if len(scale) == len(_THREE_LEVELS):
        return f"{_THREE_LEVELS[scale.index(high)]} over {_THREE_LEVELS[scale.index(low)]}"
    return f"level {high:g} over {low:g}"
