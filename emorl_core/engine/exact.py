"""Every greedy text of all mixes of a few weight vectors, exactly and without a grid.

The vectors are the corners of a line or a triangle: w(u) = u_1 a_1 + ... + u_K a_K, all u_k >= 0, with sum 1. For a
given prefix of tokens each logit is linear in u. So the chosen token changes only where two logits are equal, and each
token is chosen on one convex part. Each part is then a prefix that is one token longer, and the recursion ends with
complete texts. In the engine a part is a branch with one member, and the request's chooser divides it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from emorl_core import combine
from emorl_core.engine.sequences import Branch, Choice, Member
from emorl_core.errors import EmorlError, InvalidRequest, NonFinite
from emorl_core.models.family import LaneModel
from emorl_core.types import Completion, Event, FinishReason, Request


@dataclass(frozen=True, slots=True)
class ExactRequest(Request):
    """A request for every greedy text between its own weights and `others`; all other fields are shared."""

    others: tuple[tuple[float, ...], ...] = ()
    min_width: float = 1e-7  # in units of u; narrower parts are not divided
    most: int | None = None  # most parts; beyond that the request fails or falls back to a grid
    most_slots: int | None = None  # parts that run at once
    time_limit_s: float | None = None  # seconds from its first slot on; beyond that likewise
    most_named: str = "most"  # the caller's names for these limits
    time_limit_named: str = "time_limit_s"

    @property
    def corners(self) -> tuple[tuple[float, ...], ...]:
        return (self.weights, *self.others)


@dataclass(frozen=True, slots=True)
class ExactCompletion(Completion):
    """The completion of such a request; `weights` are the mean of its corners."""


@dataclass(slots=True, eq=False)
class Exact(ABC):
    """The `Chooser` of such a request."""

    asked_for: ClassVar[str]  # in the plural, for errors
    request: ExactRequest
    over: bool = False
    going: int = 1  # branches that have not ended

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        if self.request.combine != "hidden":
            raise InvalidRequest(
                f"combine is {self.request.combine!r}; allowed for {self.asked_for}: hidden, since only mixed logits "
                "are linear in the weights",
                param="combine",
            )
        if not sampling.greedy or sampling.looks_back or sampling.logit_bias:
            raise InvalidRequest(f"{self.asked_for} are exact for greedy decoding without penalties or bias only")

    @property
    def corners(self) -> tuple[tuple[float, ...], ...]:
        return self.request.corners

    @abstractmethod
    def part(self, whole: Member) -> Member:
        """The first branch's member; `whole` has weight on every lane that a corner has."""

    @abstractmethod
    def divide(self, logits: CornerLogits, member: Member) -> list[tuple[Member, int]]:
        """Divide a member's part: the parts and the token chosen on each, the largest first. That one keeps the lane
        rows, and the others copy them. Has no side effects. Raises EmorlError."""

    @abstractmethod
    def ended(self, member: Member, text: str, tokens: tuple[int, ...], reason: FinishReason) -> Event:
        """Record the text of a part, and return the event about it."""

    @abstractmethod
    def completion(self, reason: FinishReason, **common: Any) -> ExactCompletion:
        """All results; empty when cancelled."""

    @property
    @abstractmethod
    def found(self) -> int:
        """The number of finished parts."""

    @abstractmethod
    def split(self, branch: Branch, into: int) -> EmorlError | Branch | None:
        """Updates `going`; see `Chooser`."""

    def too_many(self) -> bool:
        return self.request.most is not None and self.found + self.going > self.request.most

    def too_long(self, branch: Branch) -> bool:
        limit = self.request.time_limit_s
        return limit is not None and time.perf_counter() > branch.admitted + limit

    def choose(self, model: LaneModel, branch: Branch, hidden: Tensor) -> list[tuple[Member, Choice]]:
        (member,) = branch.members
        try:
            parts = self.divide(CornerLogits(self.request, model, member, len(branch.tokens), hidden), member)
        except EmorlError as error:
            return [(member, Choice(0, error=error))]
        return [(part, Choice(token)) for part, token in parts]


class CornerLogits:
    """The logits of one branch at one position: at the corners and in between."""

    def __init__(self, request: ExactRequest, model: LaneModel, member: Member, position: int, hidden: Tensor) -> None:
        """hidden: [N, D], a row per lane of the member."""
        self._model, self._hidden = model, hidden
        corners = [[vector[number] for number in member.numbers] for vector in request.corners]
        self._corners = torch.tensor(corners, dtype=torch.float64, device=hidden.device)  # [K, N]
        held = position < request.sampling.min_new_tokens
        self._forbidden = list(model.facts.eos_token_ids) if held else []

    def affine(self) -> Tensor:
        """[K, V] float64: the corners' logits before any cap, which is monotonic. In between, logits are u @ these."""
        hidden = self._mixed(self._corners)
        return self._checked(self._model.uncapped_head(hidden).double(), forbidden=-1e30)

    def at(self, places: Tensor) -> Tensor:
        """u [P, K] float64 -> [P, V] float32, computed exactly as for a plain request."""
        weights = places.to(self._corners.device) @ self._corners
        return self._checked(self._model.head(self._mixed(weights)), forbidden=float("-inf"))

    def _mixed(self, weights: Tensor) -> Tensor:
        return combine.mix_hidden(self._hidden.unsqueeze(0), weights.float())

    def _checked(self, logits: Tensor, *, forbidden: float) -> Tensor:
        if not torch.isfinite(logits).all():
            raise NonFinite("the model produced NaN or inf for this request")
        logits[:, self._forbidden] = forbidden
        return logits
