"""The gradients of one step, for all objectives in one forward and one backward pass.

Objectives share no trainable parameter, so the gradient of the sum of their losses is each one's own gradient. Letters:
G groups of a forward pass (a prompt's replies in one lane), k replies of each, M = G * k rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from emorl_core.lanes.index import BASE_LANE
from emorl_core.models.family import Group, TrainableModel
from training.rl import losses
from training.rl.logprobs import group_of, reply_logprobs
from training.rl.processes import Processes
from training.rl.settings import SORTED_TOKENS, Advantage, KLSettings, Normalisation, RlSettings
from training.rl.stacks import Stacks

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """k replies of one objective to one prompt, as training data."""

    source: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """Of the replies."""
        return sum(map(len, self.replies))


Batch = Mapping[int, Sequence[TrainingGroup]]  # lane -> groups of this process's prompts
Item = tuple[int, TrainingGroup]  # a lane and its group


@dataclass(slots=True)
class Measures:
    """Sums over one objective's step; they can be added over forward passes and processes."""

    loss: float = 0.0
    policy_loss: float = 0.0
    kl_loss: float = 0.0  # coefficient included
    k1: float = 0.0  # nats, summed over replies
    k3: float = 0.0
    replies: int = 0
    tokens: int = 0

    def add(self, other: Measures) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of one objective's step over all forward passes and processes, over which losses are averaged."""

    replies: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of a step.

    advantage: None: the reward itself is the advantage. asks_base: whether to compute the base's log-probabilities;
    without them no KL is measured.
    """

    advantage: Advantage | None
    policy_loss: Normalisation
    kl: KLSettings
    asks_base: bool = True

    @classmethod
    def of(cls, settings: RlSettings) -> StepLoss:
        """The loss of reinforcement learning."""
        return cls(settings.advantage, settings.policy_loss, settings.kl)

    @classmethod
    def of_given_replies(cls) -> StepLoss:
        """Cross-entropy: the mean of -log p over the tokens of replies with reward 1, as the policy loss with advantage
        1."""
        return cls(None, "token_mean", KLSettings(kind="none"), asks_base=False)


class Lockstep:
    """Accumulates gradients in the stacks of a model with attached adapters."""

    def __init__(
        self,
        model: TrainableModel,
        loss: StepLoss,
        *,
        dropout: float = 0.0,
        prompts_per_forward: int | None = None,
        autocast: Autocast = nullcontext,
    ) -> None:
        """prompts_per_forward: for gradient accumulation; None: all prompts at once, or, where replies are sorted by
        length, as many as make `SORTED_TOKENS`."""
        self._model, self._loss, self._autocast = model, loss, autocast
        self._per_forward = prompts_per_forward
        for _, layer in model.linears():
            layer.dropout = dropout

    def accumulate(self, batch: Batch, totals: Mapping[int, Totals]) -> tuple[dict[int, Measures], set[int]]:
        """Each lane's groups are in the order of the prompts, which all lanes share.

        Returns each lane's measures, and the lanes whose loss was NaN or inf. Those have no valid gradient; the others
        do.
        """
        measures = {lane: Measures() for lane in batch}
        broken: set[int] = set()
        with self._model.keeping_prompts():
            for part in self._parts(batch):
                while sound := [item for item in part if item[0] not in broken]:
                    found = self._forward_backward(sound, totals)
                    if isinstance(found, set):
                        # run again without them, so that their rows do not affect the others' gradients
                        broken |= found
                        continue
                    for lane, measured in found.items():
                        measures[lane].add(measured)
                    break
        return measures, broken

    def _parts(self, batch: Batch) -> Iterator[Sequence[Item]]:
        """The passes of a step: neighbouring prompts with all their lanes, or groups of similar length."""
        prompts = max(map(len, batch.values()), default=0)
        items = [(lane, batch[lane][i]) for i in range(prompts) for lane in batch]
        size = (self._per_forward or prompts) * len(batch)
        if self._model.lanes_apart:  # the longest first, so that too little memory shows at once
            items.sort(key=lambda item: item[1].tokens, reverse=True)
        first = 0
        while first < len(items):
            if self._model.lanes_apart and self._per_forward is None:
                size = max(1, SORTED_TOKENS // max(1, items[first][1].tokens))
            yield items[first : first + size]
            first += size

    def _forward_backward(self, part: Sequence[Item], totals: Mapping[int, Totals]) -> dict[int, Measures] | set[int]:
        """Measures by lane, or the faulty lanes, in which case no gradient was changed."""
        groups = [group_of(self._model, group.source, lane, group.replies) for lane, group in part]
        rewards = torch.tensor([group.rewards for _, group in part], device=self._model.facts.device)  # [G, k]
        lanes = list(dict.fromkeys(lane for lane, _ in part))
        reference = self._reference(groups, len(lanes)) if self._loss.asks_base else None  # [M, T]
        self._model.train()
        with self._autocast():
            logprobs, mask = reply_logprobs(self._model, groups)  # [M, T], rows in the order of groups
        self._model.train(False)
        if reference is None:
            reference = logprobs.detach()
        away = losses.k1(logprobs.detach(), reference, mask)  # [M]
        kl = self._loss.kl
        if kl.kind == "k1_in_reward":
            rewards = rewards - kl.coefficient * away.view_as(rewards)
        kind = self._loss.advantage
        advantage = (rewards if kind is None else losses.advantages(rewards, kind)).flatten()  # [M]

        k = rewards.shape[1]
        lane_of_row = [lane for lane, _ in part for _ in range(k)]
        total: Tensor | None = None
        measures: dict[int, Measures] = {}
        broken = set()
        for lane in lanes:
            rows = torch.tensor([i for i, own in enumerate(lane_of_row) if own == lane], device=mask.device)
            weights = losses.token_weights(
                mask[rows], self._loss.policy_loss, replies=totals[lane].replies, tokens=totals[lane].tokens
            )
            own, base = logprobs[rows], reference[rows]
            policy = losses.policy_loss(own, advantage[rows], weights)
            pull = kl.coefficient * losses.kl_loss(own, base, weights) if kl.kind == "k3_in_loss" else policy * 0.0
            loss = policy + pull
            total = loss if total is None else total + loss
            k3 = (losses.k3(own.detach(), base) * mask[rows]).sum()
            numbers = [float(value) for value in (loss.detach(), policy.detach(), pull.detach(), away[rows].sum(), k3)]
            if not all(map(math.isfinite, numbers)):
                broken.add(lane)
            found_loss, found_policy, found_pull, found_k1, found_k3 = numbers
            measures[lane] = Measures(
                found_loss, found_policy, found_pull, found_k1, found_k3, len(rows), int(mask[rows].sum())
            )
        if broken:
            return broken
        if total is not None and total.requires_grad:
            total.backward()
        return measures

    @torch.no_grad()
    def _reference(self, groups: Sequence[Group], lanes: int) -> Tensor:
        """[M, T] log p of the same replies under the base. Without `lanes_apart`, a prompt's `lanes` groups are
        adjacent."""
        bare = [group_of(self._model, group.lane.prompt_ids, BASE_LANE, group.replies) for group in groups]
        if not self._model.lanes_apart:
            # A prompt's replies of all lanes form one group.
            bare = [_merged(bare[first : first + lanes]) for first in range(0, len(bare), lanes)]
        with self._autocast():
            return reply_logprobs(self._model, bare)[0]


def _merged(groups: Sequence[Group]) -> Group:
    return Group(groups[0].lane, tuple(reply for group in groups for reply in group.replies))


@dataclass(frozen=True, slots=True)
class Gradients:
    """Results by lane. A lane is in `norms` and `measures`, with its gradient in the stacks, or in `faults`."""

    measures: dict[int, Measures]
    norms: dict[int, float]
    faults: dict[int, str]


class GradientStep:
    """Computes the gradients of the stacks for one step's batch."""

    def __init__(self, lockstep: Lockstep, stacks: Stacks, processes: Processes, *, replies: int) -> None:
        """replies: number of one objective's replies in a step, over all processes."""
        self._lockstep, self._stacks, self._processes, self._replies = lockstep, stacks, processes, replies

    def compute(self, batch: Batch) -> Gradients:
        """Every process returns the same measures, norms and faults."""
        faults: dict[int, str] = {}
        while True:
            found = self._attempt({lane: groups for lane, groups in batch.items() if lane not in faults})
            faults |= found.faults
            suspects = [lane for lane, norm in found.norms.items() if not math.isfinite(norm)]
            if not suspects:
                return Gradients(found.measures, found.norms, faults)
            # One objective's NaN can reach the others' gradients (0 * NaN in the masked columns), so each is run alone.
            guilty = [lane for lane in suspects if not math.isfinite(self._attempt({lane: batch[lane]}).norms[lane])]
            faults |= dict.fromkeys(guilty or suspects, "the gradient is not finite")

    def _attempt(self, batch: Batch) -> Gradients:
        self._stacks.zero_gradients()
        own = {lane: sum(len(ids) for group in groups for ids in group.replies) for lane, groups in batch.items()}
        tokens = self._processes.gather_objects(own)
        totals = {lane: Totals(self._replies, sum(part[lane] for part in tokens)) for lane in batch}
        gathered = self._processes.gather_objects(self._lockstep.accumulate(batch, totals))
        broken = set().union(*(part for _, part in gathered))
        self._stacks.zero_gradients(sorted(broken))
        self._processes.add_up(self._stacks.gradients())
        measures = {lane: Measures() for lane in batch if lane not in broken}
        for part, _ in gathered:
            for lane, whole in measures.items():
                whole.add(part[lane])
        norms = {lane: self._stacks.gradient_norm(lane) for lane in measures}
        return Gradients(measures, norms, dict.fromkeys(sorted(broken), "the loss is not finite"))
