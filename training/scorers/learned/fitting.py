"""Training of a cross-encoder: epochs of lessons, keeping the best one, with a state to resume from.

All randomness comes from (seed, epoch), so training can resume at an epoch without the random state of earlier ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.files.writing import replacing
from emorl_core.scorers.base import ScorerError
from emorl_core.scorers.cross_encoder import encode_pairs, raw_outputs
from training.progress import FitProgress
from training.scorers.learned.batches import derived_seed
from training.scorers.learned.lessons import Lessons
from training.scorers.learned.settings import ScorerTraining

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE_FILE = "state.pt"
WARM_UP = 0.1  # share of steps in which the learning rate rises; it falls to zero over the rest
MAX_GRADIENT_NORM = 1.0
EVALUATION_BATCH = 32


class Fitting:
    """The model in training, its optimiser, and the best epoch so far."""

    def __init__(
        self,
        config: ScorerTraining,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lessons: Lessons,
    ) -> None:
        import torch

        self.config, self.model, self.tokenizer, self.lessons = config, model, tokenizer, lessons
        self.steps = len(lessons.plan(0))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.done = 0
        self.qualities: list[float] = []
        self.kept = 0  # the epoch that `best` comes from
        self.best: dict[str, torch.Tensor] = {}

    def epoch(self, epoch: int, progress: FitProgress | None) -> None:
        """One pass over the training part."""
        import torch

        torch.manual_seed(derived_seed(self.config.seed, epoch, "dropout"))
        self.model.train()
        for step, batch in enumerate(self.lessons.plan(epoch), start=1):
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

    def raw(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[float]]:
        """The current model's outputs, one row per pair."""
        return raw_outputs(
            self.model,
            self.tokenizer,
            prompts,
            responses,
            max_length=self.config.max_length,
            batch_size=EVALUATION_BATCH,
        )

    def keep_if_best(self, quality: float) -> None:
        # `>=`: of equally good epochs, the later one has seen more data.
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
            "lessons": self.lessons.state(),
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
        self.lessons.restore(state["lessons"])

    def _rate(self, step: int) -> float:
        total = self.config.epochs * self.steps
        rising = max(1.0, WARM_UP * total)
        return min((step + 1) / rising, max(0.0, (total - step) / max(1.0, total - rising)))

    def _loss(self, batch: list[Any]) -> torch.Tensor:
        pairs = encode_pairs(self.tokenizer, *self.lessons.texts(batch), self.config.max_length)
        padded = self.tokenizer.pad(pairs, return_tensors="pt").to(self.model.device)
        return self.lessons.loss(self.model(**padded).logits, batch)
