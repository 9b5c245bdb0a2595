"""A cross-encoder while it is trained: epochs over graded pairs, the best one kept, and a state to go on from.

Everything random comes from (seed, epoch), so an epoch can be resumed without its predecessors' random state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.files.writing import replacing
from training.progress import FitProgress
from training.scorers.base import ScorerError
from training.scorers.cross_encoder import encode_pairs
from training.scorers.learned.batches import Example, derived_seed, margin_loss, plan_epoch
from training.scorers.learned.report import Evaluation
from training.scorers.learned.settings import ScorerTraining

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE_FILE = "state.pt"
WARM_UP = 0.1  # share of the steps over which the learning rate rises; it falls to zero over the rest
MAX_GRADIENT_NORM = 1.0


class Fitting:
    """The model while it is trained, its optimiser, and the best epoch so far."""

    def __init__(
        self,
        config: ScorerTraining,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        levels: list[float],
    ) -> None:
        import torch

        self.config, self.model, self.tokenizer, self.levels = config, model, tokenizer, levels
        self.examples = examples
        self.steps = len(self._plan(0))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.done = 0
        self.qualities: list[float] = []
        self.kept = 0  # the epoch that `best` comes from
        self.best: dict[str, torch.Tensor] = {}
        counts = [sum(example.level == level for example in self.examples) for level in levels]
        self.class_weights = torch.tensor(
            [len(self.examples) / (len(levels) * count) for count in counts], device=model.device
        )

    def epoch(self, epoch: int, progress: FitProgress | None) -> None:
        """One pass over the training part."""
        import torch

        torch.manual_seed(derived_seed(self.config.seed, epoch, "dropout"))
        self.model.train()
        plan = self._plan(epoch)
        for step, batch in enumerate(plan, start=1):
            loss = self._loss(batch)
            if not math.isfinite(value := loss.item()):
                raise ScorerError(
                    f"the loss is not finite in epoch {epoch + 1}, step {step}; lower learning_rate "
                    f"({self.config.learning_rate:g})",
                    param="learning_rate",
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            if progress is not None:
                progress(epoch * self.steps + step, self.config.epochs * self.steps, value)
        self.done = epoch + 1
        self.model.eval()

    def raw(self, part: Evaluation) -> list[list[float]]:
        """The model's outputs on an evaluation part."""
        return part.raw(self.model, self.tokenizer, self.config.max_length)

    def keep_if_best(self, quality: float) -> None:
        # `>=`: of equals the later one has seen more.
        if not self.qualities or quality >= max(self.qualities):
            self.kept = len(self.qualities)
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        self.qualities.append(quality)

    def save(self, partial: Path, fingerprint: dict[str, Any]) -> None:
        import torch

        partial.mkdir(parents=True, exist_ok=True)
        state = {
            "fingerprint": json.dumps(fingerprint),
            "done": self.done,
            "qualities": self.qualities,
            "kept": self.kept,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with replacing(partial / STATE_FILE) as temporary:
            torch.save(state, temporary)

    def restore(self, file: Path, fingerprint: dict[str, Any]) -> None:
        import torch

        state = torch.load(file, map_location=self.model.device, weights_only=True)
        if state["fingerprint"] != json.dumps(fingerprint):
            raise ScorerError(
                "resume: the interrupted run had other data or settings; start again with overwrite", param="resume"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done, self.qualities, self.kept = state["done"], state["qualities"], state["kept"]
        self.best = {name: tensor.cpu() for name, tensor in state["best"].items()}

    def _rate(self, step: int) -> float:
        total = self.config.epochs * self.steps
        rising = max(1.0, WARM_UP * total)
        return min((step + 1) / rising, max(0.0, (total - step) / max(1.0, total - rising)))

    def _plan(self, epoch: int) -> list[list[Example]]:
        config = self.config
        mismatched = config.mismatched if config.loss == "margin" else None
        return plan_epoch(self.examples, config.seed, epoch, batch_size=config.batch_size, mismatched=mismatched)

    def _loss(self, batch: list[Example]) -> torch.Tensor:
        import torch

        pairs = encode_pairs(
            self.tokenizer,
            [example.prompt for example in batch],
            [example.response for example in batch],
            self.config.max_length,
        )
        padded = self.tokenizer.pad(pairs, return_tensors="pt").to(self.model.device)
        logits = self.model(**padded).logits  # [batch, 1 or levels]
        levels = torch.tensor([example.level for example in batch], device=logits.device)
        if self.config.loss == "classes":
            truth = (levels[:, None] == torch.tensor(self.levels, device=levels.device)).int().argmax(dim=1)
            return torch.nn.functional.cross_entropy(logits, truth, weight=self.class_weights)
        groups = torch.tensor([example.group for example in batch], device=logits.device)
        return margin_loss(logits[:, 0], levels, groups, self.config.margin)
