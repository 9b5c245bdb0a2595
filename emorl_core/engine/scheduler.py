"""Waiting and running branches, admission, cancellation. No torch here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from emorl_core.engine.sequences import Branch, Job, Member
from emorl_core.engine.waiting import Waiting, without

# Limit on a sweep's members per slot beside streams. A member costs a row of logits per step, however many share its
# branch's lane rows. A client that has both sweeps and streams may slow down its own streams, but not those of others.
_MEMBERS_A_SLOT = 4
_MEMBERS_A_SLOT_BESIDE_OTHERS = 1
_LEAST_TOKENS = 16  # re-feeding a preempted branch costs little compared with this many steps


class Scheduler:
    """Up to `slots` running branches, shared fairly between clients, and between the jobs of each client.

    A free slot goes to the client with the fewest running branches, and among its waiting jobs to the one with the
    fewest. Ties go to the job that has waited longest since it arrived or last got a slot. Within a job, forked
    branches go before new prompts (depth-first).

    So a client's plain requests are served in order of arrival, a sweep uses slots that nobody else wants, and a client
    with many long requests does not make the others wait for all of them. No job starves: a job that got a slot queues
    behind the others, a client that got one has one more than before, and every branch frees its slot within
    `max_new_tokens` steps. Waiting branches hold no tensors.

    A branch that does not fit into memory beside the running ones waits for some of them to end, and no other branch
    overtakes it.

    Beside streams, sweeps run with few members per slot, and the rest wait. This costs extra steps, since members split
    off a branch run its lanes again. A branch is not split for its own client's streams. One that started before other
    clients' streams is preempted, and split when it resumes.

    A branch that is not streamed is preempted, after `_LEAST_TOKENS` tokens in its slot, for a client or a job that has
    at least two slots fewer than its own. Its tokens are fed again later, so it loses its turn but no result.
    """

    def __init__(self, slots: int, fits: Callable[[Sequence[Branch]], bool] = lambda _: True) -> None:
        """fits: whether there is memory for these branches to run together; each fits alone."""
        self.slots = slots
        self._fits = fits
        self.running: list[Branch] = []
        self.waiting = Waiting()
        self._in_slots: Counter[Job] = Counter()  # running branches per job
        self._of_client: Counter[str | None] = Counter()  # the same per client
        self._left: set[Job] = set()  # jobs that may have no branches left
        self._cancelled: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, branch: Branch) -> None:
        # A pending cancellation belongs to an earlier request with the same id, which may have completed meanwhile.
        self._cancelled.difference_update(member.request.request_id for member in branch.members)
        self.waiting.add(branch)

    def add_first(self, branches: Sequence[Branch]) -> None:
        """Put branches back at the head of their jobs' queues."""
        self.waiting.add_first(branches)

    def resume(self, branches: Sequence[Branch]) -> None:
        """Requeue branches that lost their slots to a fault of another branch; their jobs are served next."""
        self.waiting.go_first(dict.fromkeys(branch.job for branch in branches))
        self.add_first(branches)

    def cancel(self, request_id: str) -> None:
        """Takes effect at the next `take_cancelled`; unknown ids are ignored."""
        self._cancelled.add(request_id)

    def take_cancelled(self) -> list[tuple[Branch, Member, bool]]:
        """Remove the cancelled members from their branches: (branch, member, whether the branch was running).

        A branch without remaining members is removed from `waiting`; the caller releases it from `running`.
        """
        if not self._cancelled:
            return []
        taken = [(each, member, True) for each in self.running for member in without(each, self._cancelled)]
        self._left |= self.waiting.jobs_of(self._cancelled)
        taken += [(branch, member, False) for branch, member in self.waiting.take_cancelled(self._cancelled)]
        self._cancelled.clear()
        return taken

    def admit(self, job: Job | None) -> list[Branch]:
        """Move waiting branches into the free slots; the first is of this job (`next_job`)."""
        self._forget_jobs()
        admitted: list[Branch] = []
        now = time.perf_counter()
        while job is not None and len(self.running) < self.slots:
            if not self._fits([*self.running, self.waiting.head(job)]):
                break
            branch = self.waiting.take(job)
            self._split(branch)
            branch.admitted = branch.admitted or now
            self.start(branch)
            admitted.append(branch)
            job = self.next_job()
        return admitted

    def preempt(self, needy: Job | None) -> Branch | None:
        """Preempt a running branch if its slot should go to this waiting job (`next_job`), or if it started before
        other clients' streams and has too many members beside them."""
        if (crowd := self._crowd_beside_others()) is not None:
            self.release([crowd])
            self.add_first([crowd])
            return crowd
        if needy is None:
            return None
        if len(self.running) < self.slots and self._fits([*self.running, self.waiting.head(needy)]):
            return None
        owing = [branch for branch in self.running if self._owes(branch, needy)]
        if not owing:
            return None
        # few tokens are quickly fed again
        branch = max(owing, key=lambda each: (*self._share(each.job), -len(each.tokens)))
        self.release([branch])
        self.add_first([branch])
        return branch

    def _owes(self, branch: Branch, needy: Job) -> bool:
        """Whether the branch holds a slot that the waiting job should have."""
        level = 1 if branch.job.client == needy.client else 0  # between the jobs of a client, or between clients
        much_more = self._share(branch.job)[level] - self._share(needy)[level] >= 2
        ran = len(branch.tokens) - branch.tokens_before
        streamed = any(member.request.stream for member in branch.members)
        return much_more and ran >= _LEAST_TOKENS and not streamed

    def start(self, branch: Branch) -> None:
        """Put a branch that is not queued into a slot: a forked one, if `room_for` allows it."""
        branch.job.started = True
        branch.tokens_before = len(branch.tokens)
        self.running.append(branch)
        self._in_slots[branch.job] += 1
        self._of_client[branch.job.client] += 1
        self.waiting.go_last(branch.job)

    def room_for(self, branch: Branch) -> bool:
        """Whether a forked branch may run at once: a slot stays free after every waiting job with priority has got one,
        and the branch fits beside the next of them."""
        if self._full(branch.job):
            return False
        needy = self.next_job()
        first = [] if needy is None or needy is branch.job else [self.waiting.head(needy)]
        if not self._fits([*self.running, *first, branch]):
            return False
        free = self.slots - len(self.running)
        own, passed = self._share(branch.job), False
        for job, head in self.waiting.heads:
            if free <= 0:
                break
            if job is branch.job:
                passed = True
            elif head is not None and not self._full(job):
                share = self._share(job)
                free -= share < own or (share == own and not passed)
        return free > 0

    def _share(self, job: Job) -> tuple[int, int]:
        """The job's sort key, smallest first: running branches of its client, and of itself."""
        return self._of_client[job.client], self._in_slots[job]

    def _full(self, job: Job) -> bool:
        """Whether the job holds as many slots as it may."""
        return job.most_slots is not None and self._in_slots[job] >= job.most_slots

    def release(self, branches: Iterable[Branch]) -> None:
        """Free these branches' slots; branches that are not running are ignored."""
        gone = {id(branch) for branch in branches}
        leaving = [branch for branch in self.running if id(branch) in gone]
        self.running = [branch for branch in self.running if id(branch) not in gone]
        self._in_slots.subtract(branch.job for branch in leaving)
        self._of_client.subtract(branch.job.client for branch in leaving)
        self._left.update(branch.job for branch in leaving)

    def drop_siblings(self, branch: Branch) -> list[Branch]:
        """Remove the other branches, running and waiting, of a request that has a chooser; returns them."""
        if branch.chooser is None:
            return []
        job = [*self.running, *self.waiting.of(branch.job)]
        siblings = [each for each in job if each.chooser is branch.chooser and each is not branch]
        self.release(siblings)
        self.waiting.remove(siblings)
        self._left.update(each.job for each in siblings)
        return siblings

    def clear(self) -> list[Branch]:
        """Drop every branch, running and waiting; returns them."""
        dropped = [*self.running, *self.waiting]
        self.running = []
        self.waiting.clear()
        self._in_slots.clear()
        self._of_client.clear()
        self._left.clear()
        return dropped

    def next_job(self) -> Job | None:
        """The job that gets the next free slot; see the class. A sweep that must wait holds up other sweeps, so that
        small ones do not overtake it, but not plain requests."""
        best = self._poorest(lambda _: True)
        if best is not None and self._crowds(self.waiting.head(best)):
            return self._poorest(lambda branch: len(branch.members) == 1)
        return best

    def _poorest(self, may: Callable[[Branch], bool]) -> Job | None:
        """The scan ends at the first job with the smallest possible key."""
        best: Job | None = None
        for job, head in self.waiting.heads:
            if head is None or self._full(job) or not may(head):
                continue
            share = self._share(job)
            if share == (0, 0):
                return job
            if best is None or share < self._share(best):
                best = job
        return best

    def _crowds(self, branch: Branch) -> bool:
        """Whether none of the branch's members may run now."""
        return self._members_beside_streams(branch) < 1

    def _split(self, branch: Branch) -> None:
        """Limit the members of the branch that runs next; the others wait at the head of its job's queue."""
        most = self._members_beside_streams(branch)
        if most < len(branch.members):
            self.waiting.add_first([branch.fork(branch.members[most:])])
            branch.members = branch.members[:most]

    def _members_beside_streams(self, branch: Branch) -> int:
        """How many of the branch's members may run, given those of running sweeps, without slowing down streams."""
        every = len(branch.members)
        streams = [each for each in self.running if any(member.request.stream for member in each.members)]
        if every == 1 or not streams:
            return every
        crowd = sum(len(each.members) for each in self.running if len(each.members) > 1)
        if any(each.job.client != branch.job.client for each in streams):
            return min(every, max(0, _MEMBERS_A_SLOT_BESIDE_OTHERS * self.slots - crowd))
        return every if not crowd or crowd + every <= _MEMBERS_A_SLOT * self.slots else 0

    def _crowd_beside_others(self) -> Branch | None:
        """The running branch with the most members, if other clients' streams run beside too many."""
        sweeps = [each for each in self.running if len(each.members) > 1]
        if sum(len(each.members) for each in sweeps) <= _MEMBERS_A_SLOT_BESIDE_OTHERS * self.slots:
            return None
        streaming = {each.job.client for each in self.running if each.members[0].request.stream}
        beside = [each for each in sweeps if streaming - {each.job.client} and not each.members[0].request.stream]
        return max(beside, key=lambda each: len(each.members), default=None)

    def _forget_jobs(self) -> None:
        """Remove jobs without branches. Called late, since a branch that ended may still add forked branches, which
        keep their job's turn."""
        for job in self._left:
            if not self._in_slots[job]:
                del self._in_slots[job]
                self.waiting.forget(job)
        self._left.clear()

    @property
    def waiting_requests(self) -> int:
        return self.waiting.requests(self.running)

    @property
    def running_requests(self) -> int:
        return requests_of(self.running)


def requests_of(branches: Iterable[Branch]) -> int:
    """The number of requests: one per member; a request with a chooser counts once for all its branches."""
    branches = list(branches)
    choosers = {id(branch.chooser) for branch in branches if branch.chooser is not None}
    return sum(len(branch.members) for branch in branches if branch.chooser is None) + len(choosers)
