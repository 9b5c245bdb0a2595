"""Waiting and running branches, admission, cancellation. No torch here.

A *branch* is a run of tokens that one or more requests share: same prompt, same tokens so far. A plain request is a
branch with one member. A sweep begins as one branch with many members and forks where their mixes disagree.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from emorl_core.detokenize import Detokenizer
from emorl_core.types import Attribution, Request


@dataclass(slots=True)
class Meter:
    """What a group of requests has cost so far."""

    lane_row_steps: int = 0  # lane rows computed, one token each


@dataclass(slots=True, eq=False)
class Member:
    """One request on a branch, with what differs between members of the same tokens."""

    request: Request
    arrived: float
    logprobs: list[float] = field(default_factory=list)
    attributions: list[Attribution] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    lanes: tuple[int, ...] = field(init=False)  # those it gives weight to, in rising order
    weights: tuple[float, ...] = field(init=False)  # one per lane of `lanes`
    silent: bool = field(init=False)  # nothing but its tokens is wanted

    def __post_init__(self) -> None:
        request = self.request
        self.lanes = tuple(lane for lane, weight in enumerate(request.weights) if weight != 0.0)
        self.weights = tuple(weight for weight in request.weights if weight != 0.0)
        self.silent = not (request.stream or request.logprobs or request.attribution or request.top_logprobs)


@dataclass(slots=True, eq=False)
class Branch:
    """Tokens shared by its members. `lanes`: the lanes that any member gives weight to, in rising order."""

    prompt_ids: tuple[int, ...]
    members: list[Member]
    detokenizer: Detokenizer
    meter: Meter = field(default_factory=Meter)  # shared with the branches that fork from this one
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # text that each token released
    admitted: float = 0.0
    first_token: float = 0.0

    @property
    def lanes(self) -> tuple[int, ...]:
        return tuple(sorted(set().union(*(member.lanes for member in self.members))))

    def fork(self, members: list[Member]) -> Branch:
        """A branch with the same past for `members`, which leave this one."""
        leaving = {id(member) for member in members}
        self.members = [member for member in self.members if id(member) not in leaving]
        return Branch(
            self.prompt_ids,
            members,
            self.detokenizer.fork(),
            self.meter,
            list(self.tokens),
            list(self.texts),
            self.admitted,
            self.first_token,
        )


class Scheduler:
    """First come, first served, up to `slots` running branches. Forked branches go ahead of the queue, so that a sweep
    is finished depth-first and needs no more than the slots it has."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting: deque[Branch] = deque()
        self.running: list[Branch] = []
        self._cancelled: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, branch: Branch) -> None:
        self.waiting.append(branch)

    def add_first(self, branches: Sequence[Branch]) -> None:
        self.waiting.extendleft(reversed(branches))

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
        for branches, was_running in ((self.waiting, False), (self.running, True)):
            for branch in list(branches):
                gone = [member for member in branch.members if member.request.request_id in self._cancelled]
                if not gone:
                    continue
                branch.members = [member for member in branch.members if member not in gone]
                taken += [(branch, member, was_running) for member in gone]
                if not branch.members and not was_running:
                    self.waiting.remove(branch)
        self._cancelled.clear()
        return taken

    def admit(self) -> list[Branch]:
        """Move waiting branches into free slots, oldest first."""
        admitted = []
        now = time.perf_counter()
        while self.waiting and len(self.running) < self.slots:
            branch = self.waiting.popleft()
            branch.admitted = branch.admitted or now
            self.running.append(branch)
            admitted.append(branch)
        return admitted

    def release(self, branches: Iterable[Branch]) -> None:
        gone = {id(branch) for branch in branches}
        self.running = [branch for branch in self.running if id(branch) not in gone]

    @property
    def waiting_requests(self) -> int:
        return sum(len(branch.members) for branch in self.waiting)

    @property
    def running_requests(self) -> int:
        return sum(len(branch.members) for branch in self.running)
