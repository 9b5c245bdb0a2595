"""The data of one step or one validation: prompts, replies and scores, from rollout to gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from training.data.prompts import Prompt
from training.rl.gradients import TrainingGroup
from training.rl.rewards import Scores
from training.rl.rollout import Sample


@dataclass(slots=True)
class StepBatch:
    """All lists are [prompts][replies of a prompt]. Prompts and replies are this process's share of the step; scores
    and rewards are those of all processes, so that every process makes the same decisions."""

    prompts: Sequence[Prompt]
    replies: dict[str, list[list[Sample]]]  # by objective
    scores: dict[str, Scores] = field(default_factory=dict)  # by objective
    rewards: dict[str, list[list[float]]] = field(default_factory=dict)  # by objective
    # by lane: groups that gradients are computed for
    groups: dict[int, list[TrainingGroup]] = field(default_factory=dict)

    def group(
        self, name: str, lane: int, rewards: Sequence[Sequence[float]], trained: Callable[[Sample], tuple[int, ...]]
    ) -> None:
        """Make one objective's training groups. rewards: of this process's replies; trained: reply -> the ids to train
        on."""
        self.groups[lane] = [
            TrainingGroup(prompt.gradient_source, tuple(trained(sample) for sample in own), tuple(rewarded))
            for prompt, own, rewarded in zip(self.prompts, self.replies[name], rewards, strict=True)
        ]
