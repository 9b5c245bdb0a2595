"""The lessons of an epoch: batches of prompts with replies, and the loss on the model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from training.scorers.learned.batches import Example, margin_loss, plan_epoch
from training.scorers.learned.settings import ScorerTraining

if TYPE_CHECKING:
    import torch


class Lessons(Protocol):
    """`searches`: the mean outputs for the best constant found in each epoch and for human replies, if constants are
    searched. All randomness comes from (seed, epoch), and the number of batches is the same in every epoch."""

    searches: list[dict[str, float]]

    def plan(self, epoch: int) -> list[list[Any]]:
        """The batches of an epoch."""

    def texts(self, batch: Sequence[Any]) -> tuple[list[str], list[str]]:
        """Prompts and replies, [texts] each."""

    def loss(self, logits: torch.Tensor, batch: Sequence[Any]) -> torch.Tensor:
        """A scalar. `logits`: [texts, outputs]."""

    def state(self) -> dict[str, Any]:
        """What an interrupted run needs to resume, in addition to the seed."""

    def restore(self, state: dict[str, Any]) -> None: ...


class GradedLessons:
    """Replies with levels, ranked within a prompt (`margin`) or as classes."""

    searches: list[dict[str, float]]

    def __init__(self, config: ScorerTraining, examples: Sequence[Example], levels: Sequence[float]) -> None:
        self.config, self.examples, self.levels = config, examples, levels
        self.searches = []
        counts = [sum(example.level == level for example in examples) for level in levels]
        self.class_weights = [len(examples) / (len(levels) * count) if count else 0.0 for count in counts]

    def plan(self, epoch: int) -> list[list[Example]]:
        config = self.config
        mismatched = config.mismatched if config.loss == "margin" else None
        return plan_epoch(self.examples, config.seed, epoch, batch_size=config.batch_size, mismatched=mismatched)

    def texts(self, batch: Sequence[Example]) -> tuple[list[str], list[str]]:
        return [example.prompt for example in batch], [example.response for example in batch]

    def loss(self, logits: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
        import torch

        levels = torch.tensor([example.level for example in batch], device=logits.device)
        if self.config.loss == "classes":
            scale = torch.tensor(self.levels, device=logits.device)
            truth = (levels[:, None] == scale).int().argmax(dim=1)
            weight = torch.tensor(self.class_weights, device=logits.device)
            return torch.nn.functional.cross_entropy(logits, truth, weight=weight)
        groups = torch.tensor([example.group for example in batch], device=logits.device)
        return margin_loss(logits[:, 0], levels, groups, self.config.margin)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
