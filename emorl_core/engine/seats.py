"""Maps each lane of each branch to its place in the cache."""

from __future__ import annotations

from collections.abc import Mapping

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.engine.sequences import Branch
from emorl_core.lanes.lane import Lane


class Seats:
    """The lane rows of a cache and their owners; all changes to either go through here."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.owners: list[tuple[Branch, Lane]] = []  # by place
        self._places: dict[Branch, dict[Lane, int]] = {}

    def __len__(self) -> int:
        return len(self.owners)

    def __contains__(self, branch: object) -> bool:
        return branch in self._places

    @property
    def branches(self) -> list[Branch]:
        return list(self._places)

    def of(self, branch: Branch) -> Mapping[Lane, int]:
        """The branch's lanes and their places; empty for a branch without lane rows."""
        return self._places.get(branch, {})

    def insert(self, branch: Branch, lane: Lane, memory: Memory | None) -> None:
        self._seat(branch, lane, self.cache.insert(memory))

    def fork(self, source: Branch, child: Branch) -> None:
        """Give `child` copies of the lane rows that its members need; it shares `source`'s tokens."""
        for lane in child.lanes:
            self._seat(child, lane, self.cache.fork(self._places[source][lane]))

    def remove(self, branch: Branch, lane: Lane, *, wipe: bool = False) -> None:
        """Free one lane row; the last one moves to its place (see `KVCache.remove`)."""
        place = self._places[branch].pop(lane)
        moved = self.cache.remove(place, wipe=wipe)
        owner, owner_lane = self.owners.pop()
        if moved is not None:
            self.owners[place] = owner, owner_lane
            self._places[owner][owner_lane] = place

    def leave(self, branch: Branch, *, wipe: bool = False) -> None:
        """Free all lane rows of a branch; a branch without any is ignored."""
        for lane in list(self.of(branch)):
            self.remove(branch, lane, wipe=wipe)
        self._places.pop(branch, None)

    def clear(self) -> None:
        self.cache.clear()
        self.owners.clear()
        self._places.clear()

    def _seat(self, branch: Branch, lane: Lane, place: int) -> None:
        self._places.setdefault(branch, {})[lane] = place
        self.owners.append((branch, lane))
