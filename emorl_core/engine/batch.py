"""The tensors of one step: lanes -> mix -> head -> sample."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emorl_core import combine, sampling
from emorl_core.engine.seats import Seats
from emorl_core.engine.sequences import Branch, Choice, Member
from emorl_core.engine.speculation.proposer import Proposals, Proposer
from emorl_core.errors import NonFinite
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.family import LaneModel
from emorl_core.types import Attribution, PromptLookup

# Members whose logits are held at once: 64 rows of a 32k vocabulary in float32 are 8 MB.
_LOGIT_ROWS = 64

Outcome = tuple[Branch, Member, Choice]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One token to choose."""

    branch: Branch
    member: Member
    ahead: tuple[int, ...] = ()  # how many proposed tokens precede it

    @property
    def position(self) -> int:
        return len(self.branch.tokens) + len(self.ahead)


@dataclass(slots=True)
class _Layout:
    """A step's index tensors. They are rebuilt when branches join, leave or lose members, and for every step with
    proposed tokens. Q tokens to choose, M lane rows, R tokens fed to them, N lanes at most."""

    lanes: LaneIndex  # of R tokens
    owners: list[tuple[Branch, int]]  # [M] each lane row's branch, and the token fed while that branch has none
    ahead: list[tuple[int, ...]] | None  # [M] number of proposed tokens fed after that; None: none anywhere
    starts: list[int]  # [M] index of each lane row's first token among the R
    asked: list[_Asked]  # [Q]; without members of branches that have a chooser
    lane_rows: Tensor  # [Q, N] which of the R tokens' hidden states each mixes, padded with its first
    weights: Tensor  # [Q, N] float32, 0 on padding


class Batch:
    """Branches that one model decodes together, and its key-value cache. `step` chooses a token for every member of
    every branch that has lane rows, and further ones after accepted proposals."""

    def __init__(self, model: LaneModel, prompt_lookup: PromptLookup = "off") -> None:
        self.model = model
        self.seats = Seats(model.new_cache())
        self.proposer = Proposer(prompt_lookup, model.facts)
        self.lane_row_steps = 0  # lane rows computed, one token each
        self._layout: _Layout | None = None

    def changed(self) -> None:
        """Called when lane rows are added or removed, or branches lose members."""
        self._layout = None
        self.proposer.cost.changed()

    @torch.inference_mode()
    def step(self, *, propose: bool = True) -> list[list[Outcome]]:
        """Advance every lane row by one token, or more where tokens are proposed. Returns the choices: first one for
        every member, then one for those whose first token was proposed, and so on."""
        began = time.perf_counter()
        proposals = self.proposer.propose(self.seats) if propose else {}
        if proposals:
            layout = self._arrange(proposals)
        else:
            layout = self._layout = self._layout or self._arrange({})
        hidden = self._forward(layout)
        decided = self._decide(hidden, layout)
        if decided:
            layout = self._arrange(proposals)  # the same lane rows, mixed differently
        choices: list[Choice] = []
        for first in range(0, len(layout.asked), _LOGIT_ROWS):
            choices += self._choose(hidden, layout, slice(first, first + _LOGIT_ROWS))
        outcomes = self._verified(layout.asked, choices, proposals)
        for branch in self.seats.branches:
            if branch.chooser is not None:
                places = [layout.starts[self.seats.of(branch)[lane]] for lane in branch.members[0].lanes]
                chosen = branch.chooser.choose(self.model, branch, hidden[places])
                outcomes[0] += [(branch, member, choice) for member, choice in chosen]
        for branch in decided:
            self.narrow(branch)
        self.proposer.cost.observe(len(hidden) - len(layout.owners), time.perf_counter() - began)
        return outcomes

    def _verified(
        self, asked: Sequence[_Asked], choices: Sequence[Choice], proposals: Proposals
    ) -> list[list[Outcome]]:
        """Choices up to the first that differs from its proposal, by the number of tokens before them. Lane rows drop
        the tokens fed beyond it."""
        rounds: list[list[Outcome]] = [[] for _ in range(1 + max(map(len, proposals.values()), default=0))]
        chosen: dict[Branch, tuple[int, ...]] = {}
        unsound: set[Branch] = set()
        for each, choice in zip(asked, choices, strict=True):
            if each.ahead and each.ahead != chosen.get(each.branch):
                if choice.error is not None:
                    unsound.add(each.branch)
                continue
            rounds[len(each.ahead)].append((each.branch, each.member, choice))
            if choice.error is None:
                chosen[each.branch] = (*each.ahead, choice.token_id)
        for branch, tokens in proposals.items():
            accepted = max(0, len(chosen.get(branch, ())) - 1)
            self.proposer.learn(branch, len(tokens), accepted)
            for place in self.seats.of(branch).values() if accepted < len(tokens) else ():
                self.seats.cache.shorten(place, len(tokens) - accepted, wipe=branch in unsound)
        return rounds

    def narrow(self, branch: Branch) -> None:
        """Drop the lane rows that no member of the branch mixes any more."""
        self.changed()
        for lane in set(self.seats.of(branch)) - set(branch.lanes):
            self.seats.remove(branch, lane)

    def _decide(self, hidden: Tensor, layout: _Layout) -> list[Branch]:
        """Predict the weights of members that wait for them, from the base's states of their prompts; returns their
        branches."""
        waiting = [(each.branch, each.member) for each in layout.asked if each.member.undecided]
        for branch, member in waiting:
            member.decide(hidden[layout.starts[self.seats.of(branch)[member.lanes[0]]]])
        return list(dict.fromkeys(branch for branch, _ in waiting))

    def _forward(self, layout: _Layout) -> Tensor:
        """Feed every lane row its branch's last token and the proposed tokens; returns hidden states [R, D]."""
        device, cache = self.model.facts.device, self.seats.cache
        last = [branch.tokens[-1] if branch.tokens else first for branch, first in layout.owners]
        if layout.ahead is None:
            fed = torch.tensor(last, device=device).unsqueeze(1)
            hidden = self.model.step(fed, layout.lanes, cache)[:, 0]
        else:
            rows = [(token, *ahead) for token, ahead in zip(last, layout.ahead, strict=True)]
            flat = torch.tensor([token for row in rows for token in row], device=device)
            hidden = self.model.ragged_step(flat, [len(row) for row in rows], layout.lanes, cache)
        self.lane_row_steps += len(hidden)
        for i, (branch, _) in enumerate(layout.owners):
            branch.meter.lane_row_steps += 1 if layout.ahead is None else 1 + len(layout.ahead[i])
        return hidden

    def _choose(self, hidden: Tensor, layout: _Layout, part: slice) -> list[Choice]:
        asked, weights = layout.asked[part], layout.weights[part]
        members = [each.member for each in asked]
        lanes = hidden[layout.lane_rows[part]]  # [Q, N, D]
        logits = self._mixed_logits(lanes, weights, members)  # [Q, V]
        finite = torch.isfinite(logits.sum(dim=-1))  # the sum is finite only if all are
        rows = self._row_parameters(asked)
        ids = sampling.choose(sampling.constrain(logits, rows, self.model.facts.eos_token_ids), rows)
        if all(member.silent for member in members):
            pairs = torch.stack([ids, finite.long()], dim=1).tolist()
            made = {(token, sound): _choice(token, bool(sound)) for token, sound in {(i, f) for i, f in pairs}}
            return [made[token, sound] for token, sound in pairs]
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        # One copy from the device for everything, since each copy synchronises. float64 holds every token id exactly.
        told = torch.stack([ids.double(), finite.double(), chosen.double()], dim=1).tolist()  # [Q, 3]
        attributions = self._attributions(logits, ids, lanes, weights, members)
        most = max(member.request.top_logprobs for member in members)
        best = torch.topk(logprobs, most, dim=-1) if most else None
        top: list[tuple[tuple[int, float], ...]] = [()] * len(members)
        if best is not None:
            ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top = [tuple(zip(i, v, strict=True)) for i, v in ranked]
        return [
            _choice(int(token), bool(sound), logprob, attributions.get(i), top[i][: member.request.top_logprobs])
            for i, (member, (token, sound, logprob)) in enumerate(zip(members, told, strict=True))
        ]

    def _row_parameters(self, asked: Sequence[_Asked]) -> list[sampling.RowParameters]:
        """One per member; members of a branch with the same sampling, as in a sweep, share one."""
        rows: list[sampling.RowParameters] = []
        for i, each in enumerate(asked):
            settings, before = each.member.request.sampling, asked[i - 1] if i else None
            if (
                before is not None
                and (before.branch, before.ahead) == (each.branch, each.ahead)
                and rows[-1].sampling is settings
            ):
                rows.append(rows[-1])
            else:
                seen = self._seen(each)
                rows.append(sampling.RowParameters(settings, settings.seed or 0, each.position, seen))
        return rows

    def _seen(self, asked: _Asked) -> Sequence[int]:
        request = asked.member.request
        if not request.sampling.looks_back:
            return ()
        return (*self.model.already_said(request.prompt_ids), *asked.branch.tokens, *asked.ahead)

    def _mixed_logits(self, lanes: Tensor, weights: Tensor, members: Sequence[Member]) -> Tensor:
        """[Q, N, D] -> [Q, V]: one head product per token, or one per lane for those that mix probabilities."""
        by_probs = [i for i, member in enumerate(members) if member.request.combine == "probs"]
        if not by_probs:
            return self.model.head(combine.mix_hidden(lanes, weights))
        by_hidden = [i for i in range(len(members)) if i not in set(by_probs)]
        logits = torch.empty(len(members), self.model.facts.vocab_size, device=lanes.device)
        if by_hidden:
            logits[by_hidden] = self.model.head(combine.mix_hidden(lanes[by_hidden], weights[by_hidden]))
        some = lanes[by_probs]
        each = self.model.head(some.reshape(-1, some.shape[-1]).float()).view(*some.shape[:2], -1)
        logits[by_probs] = combine.mix_probs(each, weights[by_probs])
        return logits

    def _attributions(
        self, logits: Tensor, ids: Tensor, lanes: Tensor, weights: Tensor, members: Sequence[Member]
    ) -> dict[int, Attribution]:
        wanted = [i for i, member in enumerate(members) if member.request.attribution]
        if not wanted:
            return {}
        # The runner-up: the best token once the chosen one is masked.
        others = logits[wanted].scatter(1, ids[wanted].unsqueeze(1), float("-inf"))
        runner_up = others.argmax(dim=-1)
        direction = self.model.head_rows(ids[wanted]) - self.model.head_rows(runner_up)
        parts = combine.attribute(lanes[wanted], weights[wanted], direction).tolist()
        result = {}
        for i, values, other in zip(wanted, parts, runner_up.tolist(), strict=True):
            full = [0.0] * len(members[i].request.weights)
            for lane, value in zip(members[i].numbers, values, strict=False):  # drop padding
                full[lane] = value
            result[i] = Attribution(sum(full), tuple(full), other)
        return result

    def _arrange(self, proposals: Proposals) -> _Layout:
        device, owners = self.model.facts.device, self.seats.owners
        ahead = [proposals.get(branch, ()) for branch, _ in owners]
        starts = [0, *itertools.accumulate(1 + len(tokens) for tokens in ahead)]
        asked: list[_Asked] = []
        rows: list[list[int]] = []
        weights: list[list[float]] = []
        for branch in self.seats.branches:
            proposed = proposals.get(branch, ())
            for member in branch.members if branch.chooser is None else ():
                firsts = [starts[self.seats.of(branch)[lane]] for lane in member.lanes]
                for i in range(1 + len(proposed)):
                    asked.append(_Asked(branch, member, proposed[:i]))
                    rows.append([first + i for first in firsts])
                    weights.append(list(member.weights))
        most = max((len(row) for row in rows), default=0)
        points = [self.model.acting(lane) for (_, lane), own in zip(owners, ahead, strict=True) for _ in (0, *own)]
        return _Layout(
            lanes=LaneIndex.of(points, len(self.model.adapters), device),
            owners=[(branch, self.model.unread(lane, ())[-1]) for branch, lane in owners],
            ahead=ahead if proposals else None,
            starts=starts[:-1],
            asked=asked,
            lane_rows=torch.tensor([row + row[:1] * (most - len(row)) for row in rows], device=device),
            weights=torch.tensor([row + [0.0] * (most - len(row)) for row in weights], device=device),
        )

    @torch.inference_mode()
    def feed(self, branches: Sequence[Branch]) -> None:
        """Feed all tokens before these branches' next step in a temporary cache, then adopt its rows.

        These are the tokens that their lanes have not read yet, without the last one, which the step feeds. Rows with
        the same number of tokens are fed together.
        """
        by_number: dict[int, list[tuple[Branch, int, Lane, tuple[int, ...]]]] = {}
        for branch in branches:
            for lane, place in self.seats.of(branch).items():
                tokens = self.model.unread(lane, branch.tokens)[:-1]
                by_number.setdefault(len(tokens), []).append((branch, place, lane, tokens))
        for number, rows in by_number.items():
            if not number:
                continue
            device, places = self.model.facts.device, [place for _, place, _, _ in rows]
            cache = self.seats.cache.take(places)
            points = [self.model.acting(lane) for _, _, lane, _ in rows]
            index = LaneIndex.of(points, len(self.model.adapters), device)
            self.model.step(torch.tensor([tokens for _, _, _, tokens in rows], device=device), index, cache)
            self.seats.cache.give_back(places, cache)
            self.lane_row_steps += number * len(rows)
            for branch, _, _, _ in rows:
                branch.meter.lane_row_steps += number


def _choice(
    token_id: int,
    finite: bool,
    logprob: float = 0.0,
    attribution: Attribution | None = None,
    top_logprobs: tuple[tuple[int, float], ...] = (),
) -> Choice:
    error = None if finite else NonFinite("the model produced NaN or inf for this request")
    return Choice(token_id, logprob, attribution, top_logprobs, error)
