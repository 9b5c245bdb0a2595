"""Branches without a slot. No torch here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from emorl_core.engine.sequences import Branch, Job, Member


class Waiting:
    """A queue of branches per job, with the jobs in round-robin order.

    A sweep may have thousands of branches here while streams get a token per step, so everything that a step needs is
    counted incrementally.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._queues: dict[Job, deque[Branch]] = {}  # includes jobs that have only running branches
        self._branches = 0
        self._members = 0  # members of branches without a chooser
        self._of_chooser: Counter[int] = Counter()  # number of branches, by the id of their chooser
        self._jobs: dict[str, Job] = {}  # by request id id
        self._requests: dict[Job, list[str]] = {}

    def __iter__(self) -> Iterator[Branch]:
        for branches in self._queues.values():
            yield from branches

    def __len__(self) -> int:
        """Branches."""
        return self._branches

    @property
    def heads(self) -> Iterator[tuple[Job, Branch | None]]:
        """The jobs in order, each with its next branch; None: all its branches are running."""
        for job, branches in self._queues.items():
            yield job, branches[0] if branches else None

    def head(self, job: Job) -> Branch:
        return self._queues[job][0]

    def of(self, job: Job) -> Sequence[Branch]:
        return self._queues.get(job, ())

    def requests(self, running: Iterable[Branch]) -> int:
        """The number of waiting requests. One with a chooser counts as running once one of its branches runs."""
        choosers = {id(branch.chooser) for branch in running}
        return self._members + sum(1 for chooser in self._of_chooser if chooser not in choosers)

    # -- in and out ----------------------------------------------------------------------------------------------

    def add(self, branch: Branch) -> None:
        """Add a branch of new requests."""
        for member in branch.members:
            self._jobs[member.request.request_id] = branch.job
            self._requests.setdefault(branch.job, []).append(member.request.request_id)
        self._queues.setdefault(branch.job, deque()).append(branch)
        self._count(branch, 1)

    def add_first(self, branches: Sequence[Branch]) -> None:
        """Put branches back at the head of their jobs' queues."""
        for branch in reversed(branches):
            self._queues.setdefault(branch.job, deque()).appendleft(branch)
            self._count(branch, 1)

    def take(self, job: Job) -> Branch:
        """Remove and return the job's next branch."""
        branch = self._queues[job].popleft()
        self._count(branch, -1)
        return branch

    def remove(self, branches: Iterable[Branch]) -> None:
        """Remove these branches; branches that are not queued are ignored."""
        for branch in branches:
            if branch in self.of(branch.job):
                self._queues[branch.job].remove(branch)
                self._count(branch, -1)

    def take_cancelled(self, request_ids: set[str]) -> list[tuple[Branch, Member]]:
        """Remove the members with these ids from their branches. A branch without other members is removed."""
        taken: list[tuple[Branch, Member]] = []
        for job in self.jobs_of(request_ids):
            queue = self._queues.get(job, deque())
            for branch in queue:
                if gone := without(branch, request_ids):
                    taken += [(branch, member) for member in gone]
                    self._members -= len(gone) if branch.chooser is None else 0
            left = deque(branch for branch in queue if branch.members)
            if len(left) < len(queue):
                for branch in queue:
                    if not branch.members:
                        self._count(branch, -1)
                self._queues[job] = left
        return taken

    # -- turns ---------------------------------------------------------------------------------------------------

    def jobs_of(self, request_ids: Iterable[str]) -> set[Job]:
        """The ids of the waiting requests."""
        return {self._jobs[each] for each in request_ids if each in self._jobs}

    def go_last(self, job: Job) -> None:
        """Move the job behind the others."""
        self._queues[job] = self._queues.pop(job, deque())

    def go_first(self, jobs: Iterable[Job]) -> None:
        self._queues = {job: self._queues.pop(job, deque()) for job in jobs} | self._queues

    def forget(self, job: Job) -> None:
        """Drop a job without running branches, unless branches of it wait."""
        if not self._queues.get(job):
            self._queues.pop(job, None)
            for request_id in self._requests.pop(job, []):
                if self._jobs.get(request_id) is job:
                    del self._jobs[request_id]

    def _count(self, branch: Branch, change: int) -> None:
        self._branches += change
        if branch.chooser is None:
            self._members += change * len(branch.members)
            return
        self._of_chooser[id(branch.chooser)] += change
        if not self._of_chooser[id(branch.chooser)]:
            del self._of_chooser[id(branch.chooser)]


def without(branch: Branch, request_ids: set[str]) -> list[Member]:
    """Remove the members with these ids from the branch; returns them."""
    gone = [member for member in branch.members if member.request.request_id in request_ids]
    if gone:
        branch.members = [each for each in branch.members if each.request.request_id not in request_ids]
    return gone
