"""The engine's data structures, and which owns which.

    Job ──────────── what one caller asked for at once; slots are shared out between jobs
     ├─ Branch ───── tokens that its members share: same prompt, same reply so far; takes one slot while it runs
     │   ├─ Member ─ one request: its weights over lanes
     │   ├─ Member
     │   └─ lane rows, one for each lane that a member mixes; `Seats` knows their places in the cache
     └─ Branch ───── forked from the first when their members chose different tokens; both count on one Meter
         └─ Member

A plain request is a job with one branch with one member. A sweep is a job with a branch for each prompt at first, and
one member for each weight vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from emorl_core.engine.speculation.lookup import Lookup
from emorl_core.errors import EmorlError
from emorl_core.lanes.lane import Coefficients, Lane
from emorl_core.models.family import LaneModel
from emorl_core.text.detokenize import Detokenizer
from emorl_core.types import Attribution, Completion, Event, FinishReason, Request


@dataclass(slots=True)
class Meter:
    """What a group of requests has cost so far."""

    lane_row_steps: int = 0  # lane rows computed, one token each


@dataclass(slots=True, eq=False)
class Job:
    """The unit of fairness: free slots are shared between clients, and between the jobs of each."""

    client: str | None = None  # the caller, where callers are distinguished
    most_slots: int | None = None  # None: as many as are free
    started: bool = False  # whether one of its branches has run


@dataclass(frozen=True, slots=True)
class Choice:
    """The token that one member chose, or the error that ends it; the other fields are then meaningless."""

    token_id: int
    logprob: float = 0.0
    attribution: Attribution | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    error: EmorlError | None = None


@dataclass(slots=True, eq=False)
class Member:
    """One request on a branch: the state that differs between members with the same tokens."""

    request: Request
    arrived: float
    lanes: tuple[Lane, ...]  # whose hidden states it mixes
    weights: tuple[float, ...]  # one per lane of `lanes`
    numbers: tuple[int, ...] = ()  # indices of these named lanes, ascending; empty where adapters are summed
    logprobs: list[float] = field(default_factory=list)
    attributions: list[Attribution] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    silent: bool = field(init=False)  # only its tokens are needed
    undecided: bool = field(init=False)  # its weights have yet to be predicted

    def __post_init__(self) -> None:
        request = self.request
        self.silent = not (request.stream or request.logprobs or request.attribution or request.top_logprobs)
        self.undecided = request.predict is not None

    @property
    def vector(self) -> tuple[float, ...]:
        """One number per named lane; all 0 until they are predicted."""
        if self.request.predict is None:
            return self.request.weights
        found = {} if self.undecided else dict(zip(self.numbers, self.weights, strict=True))
        return tuple(found.get(number, 0.0) for number in range(len(self.request.weights)))

    def decide(self, state: Tensor) -> None:
        """Predict the weights. state: the base's last hidden state [D] of the prompt. Lanes without weight are
        dropped."""
        assert self.request.predict is not None  # only called while undecided
        vector = self.request.predict(state)
        kept = [(lane, vector[n], n) for lane, n in zip(self.lanes, self.numbers, strict=True) if vector[n] != 0.0]
        self.lanes, self.weights, self.numbers = (tuple(each) for each in zip(*kept, strict=True))
        self.undecided = False


class Chooser(Protocol):
    """A request's own way to choose tokens, instead of from one mix of lanes per member. All branches of the request
    share it and have one member each."""

    over: bool  # the request's last event was made, or another chooser took over
    going: int  # branches that have not ended

    @property
    def corners(self) -> Sequence[Sequence[float]]:
        """The weight vectors that it mixes."""

    def choose(self, model: LaneModel, branch: Branch, hidden: Tensor) -> list[tuple[Member, Choice]]:
        """hidden: [N, D], a row per lane of the branch's member. Returns the members that replace it, one per token.
        May be called again for the same tokens, so it has no side effects."""

    def split(self, branch: Branch, into: int) -> EmorlError | Branch | None:
        """Called when a branch got a token and forked into this many. If that exceeds the request's limits, returns the
        error to end it with, or a branch with another chooser with which it restarts."""

    def ended(self, member: Member, text: str, tokens: tuple[int, ...], reason: FinishReason) -> Event:
        """Called when a branch ends; returns the event about it."""

    def completion(self, reason: FinishReason, **common: Any) -> Completion:
        """The completion of the request. common: the fields of every completion."""


@dataclass(slots=True, eq=False)
class Branch:
    """Tokens shared by its members."""

    prompt_ids: tuple[int, ...]
    members: list[Member]
    detokenizer: Detokenizer
    job: Job = field(default_factory=Job)
    chooser: Chooser | None = None
    meter: Meter = field(default_factory=Meter)
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # the text that each token released
    admitted: float = 0.0
    first_token: float = 0.0
    tokens_before: int = 0  # tokens it had when it last got a slot
    compiled: bool | None = None  # which step decodes it; None: it has not started
    alone: bool = False  # a single request: a later prompt may begin with its prompt and reply
    lookup: Lookup | None = None  # its prompt lookup; None until the first proposal

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that any member mixes, in index order; sums of adapters last."""
        numbers = {lane: n for each in self.members for n, lane in zip(each.numbers, each.lanes, strict=False)}
        mixed = dict.fromkeys(lane for member in self.members for lane in member.lanes)
        return tuple(sorted(mixed, key=lambda lane: numbers.get(lane, math.inf)))

    def fork(self, members: list[Member]) -> Branch:
        """A branch with the same prompt and tokens for `members`."""
        return Branch(
            self.prompt_ids,
            members,
            self.detokenizer.fork(),
            self.job,
            self.chooser,
            self.meter,
            list(self.tokens),
            list(self.texts),
            self.admitted,
            self.first_token,
            compiled=self.compiled,
        )

    def restarted(self, member: Member, chooser: Chooser) -> Branch:
        """The same request restarted from its first token, with another chooser."""
        fresh = Branch(self.prompt_ids, [member], self.detokenizer.fresh(), self.job, chooser, self.meter)
        fresh.admitted, fresh.first_token = self.admitted, self.first_token
        return fresh


def members_of(requests: Sequence[Request], points: Sequence[Coefficients], arrived: float) -> list[Member]:
    """One per request; they share their prompt. points: the named lanes."""
    prompt_ids = requests[0].prompt_ids
    members: list[Member] = []
    lanes: list[Lane] = []
    for request in requests:
        if not members or request.lane_prompts is not members[-1].request.lane_prompts:
            lanes = [Lane(point, request.prompt_of(i)) for i, point in enumerate(points)]
        if request.combine == "weights":
            summed = tuple(
                sum(weight * point[k] for weight, point in zip(request.weights, points, strict=True))
                for k in range(len(points[0]))
            )
            members.append(Member(request, arrived, (Lane(summed, prompt_ids),), (1.0,)))
            continue
        used = [i for i, weight in enumerate(request.weights) if weight != 0.0]
        weights = tuple(request.weights[i] for i in used)
        members.append(Member(request, arrived, tuple(lanes[i] for i in used), weights, tuple(used)))
    return members
