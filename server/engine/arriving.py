"""Requests waiting to be handed to the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from emorl_core.engine.sequences import Job
from emorl_core.types import Request

# The most groups of one job that wait in the engine: a sweep may have thousands, and streams wait while they are handed
# over.
_AHEAD = 16

Group = tuple[Request, ...]  # neighbours with the same prompt


class Arriving:
    """Queues of groups, one per job, so that a job with many groups does not hold up the others."""

    def __init__(self) -> None:
        self._groups: dict[Job, deque[Group]] = {}
        self._requests: set[str] = set()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def __len__(self) -> int:
        """Requests."""
        return len(self._requests)

    def add(self, job: Job, groups: Sequence[Group]) -> None:
        """Add groups of a job."""
        self._groups.setdefault(job, deque()).extend(groups)
        self._requests.update(ids_of(groups))

    def take(self, ahead: Callable[[Job], int]) -> Iterator[tuple[Job, Group]]:
        """Groups that the engine will soon need. ahead: job -> its number of groups that wait in the engine, called
        before each."""
        for job, groups in list(self._groups.items()):
            while groups and ahead(job) < _AHEAD:
                group = groups.popleft()
                self._requests.difference_update(ids_of([group]))
                yield job, group
            if not groups:
                del self._groups[job]

    def drop(self, job: Job) -> list[str]:
        """Drop the rest of a job; returns its requests."""
        ids = ids_of(self._groups.pop(job, ()))
        self._requests.difference_update(ids)
        return ids

    def clear(self) -> None:
        self._groups.clear()
        self._requests.clear()


def ids_of(groups: Sequence[Group] | deque[Group]) -> list[str]:
    return [request.request_id for group in groups for request in group]
