"""One AdamW per objective on its views of the stacks: its own gradient norm, learning rate and moments."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.rl.stacks import Stacks


class ObjectiveOptimizer:
    """Steps one objective's adapter. Others' parameters and moments are never touched."""

    def __init__(
        self,
        stacks: Stacks,
        lane: int,
        *,
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        max_norm: float,
    ) -> None:
        self._views: list[nn.Parameter] = stacks.views(lane)
        self._adamw = torch.optim.AdamW(self._views, lr=learning_rate, weight_decay=weight_decay, foreach=True)
        self._learning_rate, self._warmup_steps, self._max_norm = learning_rate, warmup_steps, max_norm
        self.steps = 0

    def step(self, norm: float) -> None:
        """Scale the gradient, whose norm the caller has taken and found finite, down to `max_norm`, and move."""
        if not math.isfinite(norm):
            raise ValueError("the gradient's norm is not finite")
        if norm > self._max_norm:
            torch._foreach_mul_(self._gradients(), self._max_norm / norm)
        self.steps += 1
        for group in self._adamw.param_groups:
            group["lr"] = self._learning_rate * min(1.0, self.steps / max(1, self._warmup_steps))
        self._adamw.step()

    def moments(self) -> dict[str, Tensor]:
        """AdamW's two running averages of every view, for a checkpoint. Empty before the first step."""
        state = {}
        for number, view in enumerate(self._views):
            for key in ("exp_avg", "exp_avg_sq"):
                if view in self._adamw.state:
                    state[f"{number}.{key}"] = self._adamw.state[view][key]
        return state

    def restore(self, steps: int, moments: dict[str, Tensor]) -> None:
        """Continue after `steps` steps with these moments."""
        self.steps = steps
        if not moments:
            return
        for number, view in enumerate(self._views):
            self._adamw.state[view] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": moments[f"{number}.exp_avg"].to(view).clone(memory_format=torch.preserve_format),
                "exp_avg_sq": moments[f"{number}.exp_avg_sq"].to(view).clone(memory_format=torch.preserve_format),
            }

    def _gradients(self) -> list[Tensor]:
        return [view.grad for view in self._views if view.grad is not None]
