"""From last hidden states to logits: a matrix, a scale, a bias, and for some models a cap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.parallel.layers import VocabularyMatrix


class Head:
    """logits = cap(scale * (W h + b)).

    Lanes are mixed before the head, so the bias counts once whatever the sum of the weights, and the cap applies to the
    mixed logits. Attribution and `rows` refer to scale * W h only: the margin between two tokens before the cap,
    without their biases.
    """

    def __init__(self, module: nn.Module | None, config: Any) -> None:
        """module: the library's output embeddings; config: of the language model."""
        if type(module) is not nn.Linear:
            kind = "none" if module is None else type(module).__name__
            raise UnsupportedModel(f"the base's head must be a plain linear layer, but it is {kind}")
        self.matrix = FrozenMatrix(module.weight.detach())  # [V, D]
        self.bias = None if module.bias is None else module.bias.detach()
        self.scale = _scale(config)
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def vocab_size(self) -> int:
        return self.matrix.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, D] -> [B, V] float32."""
        logits = self.uncapped(hidden)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def uncapped(self, hidden: Tensor) -> Tensor:
        """The same before the cap."""
        given, weight = hidden.to(self.matrix.dtype), self.matrix.weight
        if weight is None:  # quantised
            logits = self.matrix(given).float()
            logits = logits if self.bias is None else logits + self.bias
        elif given.dtype == torch.float32 and given.device.type == "cpu" and given.shape[0] <= 16:
            # The wide matrix on the left: with few rows this is 2 to 3 times as fast in the CPU library.
            logits = torch.mm(weight, given.t()).t().float().contiguous()  # autocast may narrow the product
            logits = logits if self.bias is None else logits + self.bias
        else:
            logits = F.linear(given, weight, self.bias).float()
        return logits if self.scale == 1.0 else logits * self.scale

    def rows(self, token_ids: Tensor) -> Tensor:
        """[...] -> [..., D] float32, scale included: logit before the cap, without the bias, = row . hidden."""
        return self.matrix.rows(token_ids).float() * self.scale


class SplitHead(Head):
    """A head of which this process has only some tokens' rows; its logits cover the whole vocabulary."""

    def __init__(self, module: nn.Module | None, config: Any, group: ProcessGroup) -> None:
        """module: with this process's rows only."""
        super().__init__(module, config)
        assert self.matrix.weight is not None  # it is never packed
        self._split = VocabularyMatrix(self.matrix.weight, config.vocab_size, group)
        self.matrix = self._split

    @property
    def vocab_size(self) -> int:
        return self._split.vocabulary

    def uncapped(self, hidden: Tensor) -> Tensor:
        return self._split.joined(super().uncapped(hidden))


def _scale(config: Any) -> float:
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None)  # Cohere
    return (1.0 if factor is None else float(factor)) / (1.0 if divisor is None else float(divisor))
