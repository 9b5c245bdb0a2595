"""What the engine works on: jobs, branches, members.

A *branch* is a run of tokens that one or more requests share: same prompt, same tokens so far. A plain request is a
branch with one member. A sweep begins as one branch with many members and forks where their mixes disagree. A *job* is
what one caller asked for at once: one request, or all branches of all prompts of a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emorl_core.detokenize import Detokenizer
from emorl_core.types import Attribution, Request


@dataclass(slots=True)
class Meter:
    """What a group of requests has cost so far."""

    lane_row_steps: int = 0  # lane rows computed, one token each


@dataclass(slots=True, eq=False)
class Job:
    """Whose turn it is when a slot comes free is decided between jobs. `started`: one of its branches has run."""

    started: bool = False


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
    job: Job = field(default_factory=Job)
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
            self.job,
            list(self.tokens),
            list(self.texts),
            self.admitted,
            self.first_token,
        )
