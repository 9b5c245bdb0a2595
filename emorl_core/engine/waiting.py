"""Branches without a slot. No torch here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from emorl_core.engine.sequences import Branch, Job, Member


class Waiting:
    """A queue of branches for each job, the jobs in order of turn.

    A sweep may have thousands of branches here while streams get a token a step, so what every step asks is counted
    along, not looked up.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._queues: dict[Job, deque[Branch]] = {}  # includes jobs that have only running branches
        self._branches = 0
        self._members = 0  # of branches without a chooser
        self._of_chooser: Counter[int] = Counter()  # branches, by the id of their chooser
        self._jobs: dict[str, Job] = {}  # by request
        self._requests: dict[Job, list[str]] = {}

    def __iter__(self) -> Iterator[Branch]:
        for branches in self._queues.values():
            yield from branches

    def __len__(self) -> int:
        """Branches."""
        return self._branches

    @property
    def heads(self) -> Iterator[tuple[Job, Branch | None]]:
        """The jobs in order of turn, and the branch that is next in each; None: its branches all run."""
        for job, branches in self._queues.items():
            yield job, branches[0] if branches else None

    def head(self, job: Job) -> Branch:
        return self._queues[job][0]

    def of(self, job: Job) -> Sequence[Branch]:
        return self._queues.get(job, ())

    def requests(self, running: Iterable[Branch]) -> int:
        """How many wait. One with a chooser runs as soon as one of its branches does."""
        choosers = {id(branch.chooser) for branch in running}
        return self._members + sum(1 for chooser in self._of_chooser if chooser not in choosers)

    # -- in and out ----------------------------------------------------------------------------------------------

    def add(self, branch: Branch) -> None:
        """A branch of requests that were not here before."""
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
        """The job's next branch, which leaves."""
        branch = self._queues[job].popleft()
        self._count(branch, -1)
        return branch

    def remove(self, branches: Iterable[Branch]) -> None:
        """Those that are not here are ignored."""
        for branch in branches:
            if branch in self.of(branch.job):
                self._queues[branch.job].remove(branch)
                self._count(branch, -1)

    def take_cancelled(self, request_ids: set[str]) -> list[tuple[Branch, Member]]:
        """Take the members with these ids from their branches. A branch that has no others leaves."""
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
        """Of those requests that are not forgotten."""
        return {self._jobs[each] for each in request_ids if each in self._jobs}

    def go_last(self, job: Job) -> None:
        """The job queues behind the others now."""
        self._queues[job] = self._queues.pop(job, deque())

    def go_first(self, jobs: Iterable[Job]) -> None:
        self._queues = {job: self._queues.pop(job, deque()) for job in jobs} | self._queues

    def forget(self, job: Job) -> None:
        """A job that has no running branches either, unless it waits."""
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
    """Take the members with these ids from the branch; returns them."""
    gone = [member for member in branch.members if member.request.request_id in request_ids]
    if gone:
        branch.members = [each for each in branch.members if each.request.request_id not in request_ids]
    return gone
