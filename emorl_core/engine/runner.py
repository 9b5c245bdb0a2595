"""The tensors of one step: lanes -> mix -> head -> sample.

The runner keeps a set of branches on the device. `admit` prefills them, `step` chooses one token for every member of
every branch, `fork` copies a branch's lane rows, `remove` frees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emorl_core import combine, sampling
from emorl_core.cache.kv import Memory
from emorl_core.cache.prefix import PrefillCache
from emorl_core.engine.sequences import Branch, Member
from emorl_core.models.family import LaneModel
from emorl_core.types import Attribution

# Members whose logits are held at once: 64 rows of a 32k vocabulary in float32 are 8 MB.
_LOGIT_ROWS = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """What one member chose. `finite` is False when the model gave NaN or inf for it; the rest is then meaningless."""

    token_id: int
    logprob: float
    attribution: Attribution | None
    top_logprobs: tuple[tuple[int, float], ...]
    finite: bool


@dataclass(slots=True)
class _Layout:
    """Tensors that change only when branches come, leave or lose members. Q members, M lane rows, N lanes at most."""

    lanes: Tensor  # [M] lane of each lane row
    owners: list[Branch]  # [M] branch of each lane row
    members: list[tuple[Branch, Member]]  # [Q]
    lane_rows: Tensor  # [Q, N] lane rows of each member, padded with its first
    weights: Tensor  # [Q, N] float32, 0 on padding
    lane_numbers: list[tuple[int, ...]]  # [Q] the lanes behind lane_rows


class Runner:
    """Owns the key-value cache of one model. Single-threaded, like everything above it."""

    def __init__(self, model: LaneModel, *, prefill_cache_bytes: int) -> None:
        self.model = model
        self.cache = model.new_cache()
        self.prefill_cache = PrefillCache(prefill_cache_bytes)
        self.lane_row_steps = 0  # lane rows computed, one token each: the unit of cost
        self._rows: dict[Branch, dict[int, int]] = {}  # branch -> lane -> place in the cache
        self._at: list[tuple[Branch, int]] = []  # place in the cache -> (branch, lane)
        self._layout: _Layout | None = None

    def beside(self) -> Runner:
        """Another runner over the same model and prefill cache, with lane rows of its own."""
        other = Runner(self.model, prefill_cache_bytes=0)
        other.prefill_cache = self.prefill_cache
        return other

    @property
    def lanes_running(self) -> int:
        return len({lane for _, lane in self._at})

    @property
    def lane_rows(self) -> int:
        return len(self._at)

    def holds(self, branch: Branch) -> bool:
        """Whether the branch has lane rows."""
        return branch in self._rows

    def admit(self, branches: Sequence[Branch]) -> None:
        """Prefill these branches (or find their prompts in the cache) and give them lane rows.

        A branch that has tokens already (it waited after a fork, or a step failed beside it) is fed them again.
        """
        memories = self._memories([(branch.prompt_ids, lane) for branch in branches for lane in branch.lanes])
        for branch in branches:
            self._rows[branch] = {}
            for lane in branch.lanes:
                self._place(branch, lane, self.cache.insert(memories[branch.prompt_ids, lane]))
        for branch in branches:
            if branch.tokens:
                self._replay(branch)

    def fork(self, source: Branch, child: Branch) -> None:
        """Give `child`, which shares `source`'s tokens, copies of the lane rows that its members need."""
        self._rows[child] = {}
        for lane in child.lanes:
            self._place(child, lane, self.cache.fork(self._rows[source][lane]))

    def narrow(self, branch: Branch) -> None:
        """Drop lane rows that no member of the branch gives weight to any more."""
        self._layout = None
        for lane in set(self._rows[branch]) - set(branch.lanes):
            self._remove_row(branch, lane)

    def remove(self, branch: Branch, *, poisoned: bool = False) -> None:
        """Free a branch's lane rows. `poisoned`: its values are not finite and must not be found by anybody."""
        for lane in list(self._rows.get(branch, ())):
            self._remove_row(branch, lane, wipe=poisoned)
            if poisoned:
                self.prefill_cache.discard(branch.prompt_ids, lane)
        self._rows.pop(branch, None)
        self._layout = None

    def reset(self) -> None:
        """Forget every branch."""
        self.cache.clear()
        self._rows.clear()
        self._at.clear()
        self._layout = None

    @torch.inference_mode()
    def step(self) -> list[tuple[Branch, Member, Choice]]:
        """Run every lane row one token further and choose a token for every member."""
        layout, hidden = self._forward()
        choices: list[Choice] = []
        for first in range(0, len(layout.members), _LOGIT_ROWS):
            choices += self._choose(hidden, layout, slice(first, first + _LOGIT_ROWS))
        return [(branch, member, choice) for (branch, member), choice in zip(layout.members, choices, strict=True)]

    @torch.inference_mode()
    def step_hidden(self) -> list[tuple[Branch, tuple[int, ...], Tensor]]:
        """Like `step`, for callers that mix by themselves: each branch, its lanes, their last hidden states [N, D]."""
        _, hidden = self._forward()
        return [
            (branch, tuple(places), hidden[list(places.values())]) for branch, places in self._rows.items() if places
        ]

    def _forward(self) -> tuple[_Layout, Tensor]:
        """Feed every lane row its branch's last token; returns hidden states [M, D]."""
        layout = self._layout = self._layout or self._arrange()
        start = self.model.decoder_start_token_id
        tokens = [[branch.tokens[-1] if branch.tokens else start] for branch in layout.owners]
        hidden = self.model.step(torch.tensor(tokens, device=self.model.device), layout.lanes, self.cache)[:, 0]
        self.lane_row_steps += len(tokens)
        for branch in layout.owners:
            branch.meter.lane_row_steps += 1
        return layout, hidden

    def _choose(self, hidden: Tensor, layout: _Layout, part: slice) -> list[Choice]:
        members, weights = layout.members[part], layout.weights[part]
        lanes = hidden[layout.lane_rows[part]]  # [Q, N, D]
        logits = self._mixed_logits(lanes, weights, members)  # [Q, V]
        finite = torch.isfinite(logits.sum(dim=-1))  # the sum is finite only if all are
        rows = self._row_parameters(members)
        ids = sampling.choose(sampling.constrain(logits, rows, self.model.eos_token_ids), rows)
        if all(member.silent for _, member in members):
            pairs = torch.stack([ids, finite.long()], dim=1).tolist()
            made = {key: Choice(key[0], 0.0, None, (), bool(key[1])) for key in {(i, f) for i, f in pairs}}
            return [made[i, f] for i, f in pairs]
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        # One copy from the device for all of it: each would wait for the device. float64 holds every token id exactly.
        told = torch.stack([ids.double(), finite.double(), chosen.double()], dim=1).tolist()  # [Q, 3]
        attributions = self._attributions(logits, ids, lanes, layout, part)
        most = max(member.request.top_logprobs for _, member in members)
        best = torch.topk(logprobs, most, dim=-1) if most else None
        top: list[tuple[tuple[int, float], ...]] = [()] * len(members)
        if best is not None:
            ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top = [tuple(zip(i, v, strict=True)) for i, v in ranked]
        return [
            Choice(int(token_id), logprob, attributions.get(i), top[i][: member.request.top_logprobs], bool(sound))
            for i, ((_, member), (token_id, sound, logprob)) in enumerate(zip(members, told, strict=True))
        ]

    def _row_parameters(self, members: Sequence[tuple[Branch, Member]]) -> list[sampling.RowParameters]:
        """One per member; those of a branch that share their sampling, as a sweep's do, share one."""
        rows: list[sampling.RowParameters] = []
        for i, (branch, member) in enumerate(members):
            settings = member.request.sampling
            if i and members[i - 1][0] is branch and rows[-1].sampling is settings:
                rows.append(rows[-1])
            else:
                seen = self._seen(branch, member)
                rows.append(sampling.RowParameters(settings, settings.seed or 0, len(branch.tokens), seen))
        return rows

    def _seen(self, branch: Branch, member: Member) -> Sequence[int]:
        if member.request.sampling.repetition_penalty == 1.0:
            return ()
        return (self.model.decoder_start_token_id, *branch.tokens)

    def _mixed_logits(self, lanes: Tensor, weights: Tensor, members: Sequence[tuple[Branch, Member]]) -> Tensor:
        """[Q, N, D] -> [Q, V]: through one head product a member, or one a lane for those that mix probabilities."""
        by_probs = [i for i, (_, member) in enumerate(members) if member.request.combine == "probs"]
        if not by_probs:
            return self.model.head(combine.mix_hidden(lanes, weights))
        by_hidden = [i for i in range(len(members)) if i not in set(by_probs)]
        logits = torch.empty(len(members), self.model.vocab_size, device=lanes.device)
        if by_hidden:
            logits[by_hidden] = self.model.head(combine.mix_hidden(lanes[by_hidden], weights[by_hidden]))
        some = lanes[by_probs]
        each = self.model.head(some.reshape(-1, some.shape[-1]).float()).view(*some.shape[:2], -1)
        logits[by_probs] = combine.mix_probs(each, weights[by_probs])
        return logits

    def _attributions(
        self, logits: Tensor, ids: Tensor, lanes: Tensor, layout: _Layout, part: slice
    ) -> dict[int, Attribution]:
        members = layout.members[part]
        wanted = [i for i, (_, member) in enumerate(members) if member.request.attribution]
        if not wanted:
            return {}
        # The most likely other token: the best one once the chosen one is out.
        others = logits[wanted].scatter(1, ids[wanted].unsqueeze(1), float("-inf"))
        runner_up = others.argmax(dim=-1)
        direction = self.model.head_rows(ids[wanted]) - self.model.head_rows(runner_up)
        parts = combine.attribute(lanes[wanted], layout.weights[part][wanted], direction).tolist()
        result = {}
        for i, values, other in zip(wanted, parts, runner_up.tolist(), strict=True):
            full = [0.0] * len(members[i][1].request.weights)
            for lane, value in zip(layout.lane_numbers[part][i], values, strict=False):  # padding has no lane
                full[lane] = value
            result[i] = Attribution(sum(full), tuple(full), other)
        return result

    def _arrange(self) -> _Layout:
        device = self.model.device
        members: list[tuple[Branch, Member]] = []
        rows: list[list[int]] = []
        weights: list[list[float]] = []
        numbers: list[tuple[int, ...]] = []
        for branch, places in self._rows.items():
            for member in branch.members:
                members.append((branch, member))
                numbers.append(member.lanes)
                rows.append([places[lane] for lane in member.lanes])
                weights.append(list(member.weights))
        most = max(len(lanes) for lanes in numbers)
        return _Layout(
            lanes=torch.tensor([lane for _, lane in self._at], device=device),
            owners=[branch for branch, _ in self._at],
            members=members,
            lane_rows=torch.tensor([row + row[:1] * (most - len(row)) for row in rows], device=device),
            weights=torch.tensor([row + [0.0] * (most - len(row)) for row in weights], device=device),
            lane_numbers=numbers,
        )

    def _memories(self, wanted: Sequence[tuple[tuple[int, ...], int]]) -> dict[tuple[tuple[int, ...], int], Memory]:
        found: dict[tuple[tuple[int, ...], int], Memory] = {}
        missing: list[tuple[tuple[int, ...], int]] = []
        for key in dict.fromkeys(wanted):
            memory = self.prefill_cache.get(*key)
            if memory is None:
                missing.append(key)
            else:
                found[key] = memory
        if missing:
            made = self.model.prefill([prompt for prompt, _ in missing], [lane for _, lane in missing])
            for key, memory in zip(missing, made, strict=True):
                self.prefill_cache.put(*key, memory)
                found[key] = memory
        return found

    @torch.inference_mode()
    def _replay(self, branch: Branch) -> None:
        """Feed a branch's tokens, all but the last (the next step feeds that), in a cache of its own, then adopt it."""
        places = list(self._rows[branch].values())
        tokens = [self.model.decoder_start_token_id, *branch.tokens[:-1]]
        cache = self.cache.take(places)
        lanes = torch.tensor([self._at[place][1] for place in places], device=self.model.device)
        self.model.step(torch.tensor([tokens] * len(places), device=self.model.device), lanes, cache)
        self.cache.give_back(places, cache)
        self.lane_row_steps += len(tokens) * len(places)
        branch.meter.lane_row_steps += len(tokens) * len(places)

    def _place(self, branch: Branch, lane: int, place: int) -> None:
        self._rows[branch][lane] = place
        self._at.append((branch, lane))
        self._layout = None

    def _remove_row(self, branch: Branch, lane: int, *, wipe: bool = False) -> None:
        place = self._rows[branch].pop(lane)
        moved = self.cache.remove(place, wipe=wipe)
        last = self._at.pop()
        if moved is not None:
            self._at[place] = last
            owner, owner_lane = last
            self._rows[owner][owner_lane] = place
