"""Splits a recipe's data into parts: dialogues stay whole, and all parts have the same mix of sources."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from emorl_core.scorers.words import prompt_key
from training.data.clusters import clusters_of
from training.data.records import DataError, Record
from training.data.splits import FRACTIONS, Splits, check_disjoint, check_fractions, sizes_of


def split_sources(sources: Sequence[Sequence[Record]], seed: int, fractions: Mapping[str, float] = FRACTIONS) -> Splits:
    """Parts in the order of `fractions`.

    Records of one dialogue, or with one prompt, are in the same part, whichever sources they come from. Every source is
    split separately, so that each part has its share of each; a source with fewer clusters than there are parts is
    merged with the largest one. Sizes are counted in prompts: exact to one prompt without dialogues, to one dialogue
    with them. Within a part the sources alternate, so that its first n records have the same mix as the whole; the
    records of one source keep their order.

    Raises `DataError`: fractions that are negative or do not sum to 1, or too few dialogues and prompts.
    """
    check_fractions(fractions)
    records = [record for source in sources for record in source]
    source_of = [number for number, source in enumerate(sources) for _ in source]
    cluster_of = clusters_of(records)
    prompts: dict[str, set[str]] = defaultdict(set)  # cluster -> its prompt keys
    home: dict[str, int] = {}  # cluster -> the source in which it occurs first
    for record, cluster, source in zip(records, cluster_of, source_of, strict=True):
        prompts[cluster].add(prompt_key(record.prompt))
        home.setdefault(cluster, source)
    part_of: dict[str, str] = {}
    for stratum in _strata(home, sum(fraction > 0 for fraction in fractions.values())):
        part_of |= _cut({cluster: prompts[cluster] for cluster in stratum}, seed, fractions)
    places: dict[str, list[int]] = {part: [] for part in fractions}
    for place, cluster in enumerate(cluster_of):
        places[part_of[cluster]].append(place)
    parts = {part: tuple(records[place] for place in _alternating(own, source_of)) for part, own in places.items()}
    check_disjoint(parts)
    return parts


def _strata(home: Mapping[str, int], parts: int) -> list[list[str]]:
    """The clusters of each source; those of sources that are too small are merged with the largest one's."""
    by_source: dict[int, list[str]] = defaultdict(list)
    for cluster, source in home.items():
        by_source[source].append(cluster)
    largest = max(by_source.values(), key=len, default=[])
    strata = [largest]
    for own in by_source.values():
        if own is largest:
            continue
        if len(own) < parts:
            largest += own
        else:
            strata.append(own)
    return strata


def _cut(clusters: Mapping[str, set[str]], seed: int, fractions: Mapping[str, float]) -> dict[str, str]:
    """Cluster -> part. The clusters are placed on a line, in an order determined by `seed` and their prompts, each with
    its number of prompts as its length. The line is cut into parts, and a cluster belongs to the part that contains its
    midpoint."""
    wanted = [part for part, fraction in fractions.items() if fraction > 0]
    if len(clusters) < len(wanted):
        raise DataError(
            f"{len(clusters)} distinct prompts or dialogues cannot fill {len(wanted)} parts ({', '.join(wanted)})",
            param="fractions",
        )
    order = sorted(clusters, key=lambda name: hashlib.sha256(f"{seed}:{min(clusters[name])}".encode()).digest())
    middles, end = [], 0
    for cluster in order:
        middles.append(end + len(clusters[cluster]) / 2)
        end += len(clusters[cluster])
    sizes, border = sizes_of(end, fractions), 0
    ends: list[int] = []
    for number, part in enumerate(wanted, start=1):
        border += sizes[part]
        last = len(order) - (len(wanted) - number)  # every later part gets a cluster
        first = (ends[-1] if ends else 0) + 1  # and this one too
        ends.append(min(last, max(first, sum(middle < border for middle in middles))))
    return {
        cluster: part
        for part, start, stop in zip(wanted, [0, *ends[:-1]], ends, strict=True)
        for cluster in order[start:stop]
    }


def _alternating(places: Sequence[int], source_of: Sequence[int]) -> list[int]:
    """The indices reordered so that each source is spread evenly, keeping its own order."""
    count: dict[int, int] = defaultdict(int)
    for place in places:
        count[source_of[place]] += 1
    seen: dict[int, int] = defaultdict(int)
    keyed = []
    for place in places:
        source = source_of[place]
        keyed.append(((seen[source] + 0.5) / count[source], source, place))
        seen[source] += 1
    return [place for *_, place in sorted(keyed)]
