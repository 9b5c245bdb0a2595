"""Waiting and running branches, admission, cancellation. No torch here."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from emorl_core.engine.sequences import Branch, Job, Member


class Scheduler:
    """Up to `slots` running branches, shared out fairly between jobs.

    A free slot goes to the waiting job with the fewest running branches; ties go to the job that has waited longest
    since it arrived or last got a slot. Within a job forked branches go before new prompts (depth-first).

    So plain requests are served first come, first served, and a sweep uses slots that nobody else wants; running
    branches are never preempted. No job starves: a job that got a slot queues behind the others, so one with k jobs
    ahead waits for at most k + 1 slots to come free, and every branch frees its slot within `max_new_tokens` steps.
    Waiting branches hold no tensors.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.running: list[Branch] = []
        self._waiting: dict[Job, deque[Branch]] = {}  # in order of turn; includes jobs that have only running branches
        self._in_slots: Counter[Job] = Counter()  # running branches per job
        self._left: set[Job] = set()  # jobs that may have no branches left
        self._cancelled: set[str] = set()

    @property
    def waiting(self) -> Iterator[Branch]:
        for branches in self._waiting.values():
            yield from branches

    @property
    def has_work(self) -> bool:
        return bool(self.running) or any(self._waiting.values())

    def add(self, branch: Branch) -> None:
        # A pending cancellation is of an earlier request with the same id, which may have completed meanwhile.
        self._cancelled.difference_update(member.request.request_id for member in branch.members)
        self._waiting.setdefault(branch.job, deque()).append(branch)

    def add_first(self, branches: Sequence[Branch]) -> None:
        """Put branches back at the head of their jobs' queues."""
        for branch in reversed(branches):
            self._waiting.setdefault(branch.job, deque()).appendleft(branch)

    def resume(self, branches: Sequence[Branch]) -> None:
        """Requeue branches that lost their slots to a fault of another branch; their jobs are served next."""
        jobs = dict.fromkeys(branch.job for branch in branches)
        self._waiting = {job: self._waiting.pop(job, deque()) for job in jobs} | self._waiting
        self.add_first(branches)

    def cancel(self, request_id: str) -> None:
        """Takes effect at the next `take_cancelled`; unknown ids are ignored."""
        self._cancelled.add(request_id)

    def take_cancelled(self) -> list[tuple[Branch, Member, bool]]:
        """Remove the cancelled members from their branches: (branch, member, whether the branch was running).

        A branch left without members is out of `waiting`; the caller releases it from `running`.
        """
        if not self._cancelled:
            return []
        taken = []
        for branches, was_running in ((list(self.waiting), False), (self.running, True)):
            for branch in branches:
                gone = [member for member in branch.members if member.request.request_id in self._cancelled]
                if not gone:
                    continue
                branch.members = [member for member in branch.members if member not in gone]
                taken += [(branch, member, was_running) for member in gone]
                if not branch.members and not was_running:
                    self._waiting[branch.job].remove(branch)
                    self._left.add(branch.job)
        self._cancelled.clear()
        return taken

    def admit(self) -> list[Branch]:
        """Move waiting branches into the free slots."""
        self._forget_jobs()
        admitted: list[Branch] = []
        now = time.perf_counter()
        while len(self.running) < self.slots and (job := self._next_job()) is not None:
            branch = self._waiting[job].popleft()
            branch.admitted = branch.admitted or now
            self.start(branch)
            admitted.append(branch)
        return admitted

    def start(self, branch: Branch) -> None:
        """Put a branch that does not wait into a slot: a forked one, where `room_for` says so."""
        branch.job.started = True
        self.running.append(branch)
        self._in_slots[branch.job] += 1
        self._waiting[branch.job] = self._waiting.pop(branch.job, deque())  # behind the others now

    def room_for(self, branch: Branch) -> bool:
        """Whether a forked branch may run at once: a slot stays free after every waiting job with priority got one."""
        if self._full(branch.job):
            return False
        free = self.slots - len(self.running)
        own = self._in_slots[branch.job]
        # Waiting jobs with fewer slots have priority; with equally many, those earlier in the queue.
        before = own + 1
        for job, branches in self._waiting.items():
            if free <= 0:
                break
            if job is branch.job:
                before = own
            elif branches and self._in_slots[job] < before and not self._full(job):
                free -= 1
        return free > 0

    def _full(self, job: Job) -> bool:
        """Whether it holds as many slots as it may."""
        return job.most_slots is not None and self._in_slots[job] >= job.most_slots

    def release(self, branches: Iterable[Branch]) -> None:
        """Take branches out of their slots; those that do not run are ignored."""
        gone = {id(branch) for branch in branches}
        leaving = [branch for branch in self.running if id(branch) in gone]
        self.running = [branch for branch in self.running if id(branch) not in gone]
        self._in_slots.subtract(branch.job for branch in leaving)
        self._left.update(branch.job for branch in leaving)

    def drop_siblings(self, branch: Branch) -> list[Branch]:
        """Take out the other branches of a request that has a chooser, running and waiting; returns them."""
        if branch.chooser is None:
            return []
        everywhere = [*self.running, *self.waiting]
        siblings = [each for each in everywhere if each.chooser is branch.chooser and each is not branch]
        self.release(siblings)
        for branches in self._waiting.values():
            for each in siblings:
                if each in branches:
                    branches.remove(each)
        self._left.update(each.job for each in siblings)
        return siblings

    def clear(self) -> list[Branch]:
        """Drop every branch, running and waiting; returns them."""
        dropped = [*self.running, *self.waiting]
        self.running = []
        self._waiting.clear()
        self._in_slots.clear()
        self._left.clear()
        return dropped

    def _next_job(self) -> Job | None:
        """The job that gets the next free slot. The scan ends at the first job without slots, so it visits at most
        `slots` + 1 jobs that could take one."""
        best: Job | None = None
        for job, branches in self._waiting.items():
            if not branches or self._full(job):
                continue
            if not self._in_slots[job]:
                return job
            if best is None or self._in_slots[job] < self._in_slots[best]:
                best = job
        return best

    def _forget_jobs(self) -> None:
        """Remove jobs without branches. Called late, since branches forked from one that left may still be added and
        keep their job's turn."""
        for job in self._left:
            if not self._in_slots[job]:
                del self._in_slots[job]
                if not self._waiting.get(job):
                    self._waiting.pop(job, None)
        self._left.clear()

    @property
    def waiting_requests(self) -> int:
        # A request with a chooser counts as running as soon as one of its branches runs.
        running = {id(branch.chooser) for branch in self.running}
        return _requests(branch for branch in self.waiting if id(branch.chooser) not in running or not branch.chooser)

    @property
    def running_requests(self) -> int:
        return _requests(self.running)


def _requests(branches: Iterable[Branch]) -> int:
    """Number of requests: one per member; a request with a chooser counts once for all its branches."""
    branches = list(branches)
    choosers = {id(branch.chooser) for branch in branches if branch.chooser is not None}
    return sum(len(branch.members) for branch in branches if branch.chooser is None) + len(choosers)
