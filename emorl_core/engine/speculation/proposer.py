"""Decides which branches of a batch propose tokens in the next step, and records how many were accepted."""

from __future__ import annotations

from emorl_core.engine.seats import Seats
from emorl_core.engine.sequences import Branch
from emorl_core.engine.speculation.lookup import MOST_TOKENS, Lookup
from emorl_core.engine.speculation.step_cost import StepCost
from emorl_core.models.family import Facts
from emorl_core.types import PromptLookup

Proposals = dict[Branch, tuple[int, ...]]


class Proposer:
    """Proposes tokens for branches with one member, since members that share a branch may choose different tokens.

    `auto` does so where it pays off. A right guess saves the time of one token, which is a step divided by its
    branches; every guess costs its lane rows. So a branch proposes tokens that are right more often than their cost as
    a fraction of that time. That fraction is small for a branch alone, and nearly 1 beside many others.
    """

    def __init__(self, mode: PromptLookup, facts: Facts) -> None:
        # Step times were measured on CPUs only; CUDA graphs decode one token per row.
        self.mode = "off" if mode == "auto" and facts.device.type != "cpu" else mode
        self.cost = StepCost()
        self.proposed = 0  # tokens
        self.accepted = 0
        self._ends, self._limit = frozenset(facts.eos_token_ids), facts.max_positions

    def propose(self, seats: Seats) -> Proposals:
        """Proposals for the branches of the next step; branches without one are left out."""
        if self.mode == "off":
            return {}
        row, branches = self.cost.of_row, seats.branches
        found: Proposals = {}
        for branch in branches:
            if not branch.alone or branch.members[0].undecided or not branch.members[0].request.prompt_lookup:
                continue
            branch.lookup = branch.lookup or Lookup(branch.prompt_ids, self._ends)
            most = self._most(branch, seats)
            if self.mode == "auto":
                most = min(most, branch.lookup.worth(row * len(seats.of(branch)) * len(branches)))
            if most > 0 and (tokens := branch.lookup.propose(branch.tokens, most)):
                found[branch] = tokens
        return found

    def learn(self, branch: Branch, proposed: int, accepted: int) -> None:
        assert branch.lookup is not None  # the lookup that made the proposal
        branch.lookup.learn(proposed, accepted)
        self.proposed += proposed
        self.accepted += accepted

    def _most(self, branch: Branch, seats: Seats) -> int:
        """The number of tokens that may be proposed: they must leave room for the reply's last token, and stay within
        the model's positions."""
        most = min(MOST_TOKENS, branch.members[0].request.sampling.max_new_tokens - len(branch.tokens) - 1)
        if self._limit is None:
            return most
        return min(most, self._limit - 1 - max(seats.cache.lengths[place] for place in seats.of(branch).values()))
