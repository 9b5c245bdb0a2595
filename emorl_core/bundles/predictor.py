"""Weights predicted for each prompt: a linear head on the bare base's last hidden state of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from emorl_core.weights import BASE, ResolvedWeights

Array = np.ndarray[Any, np.dtype[np.float64]]

_STEPS = 1000  # smaller weights become 0: they would cost a lane and hardly change a text


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """softmax(`head` x + `bias`) of states x [D] that were shifted by `mean` and divided by `scale`; N weights that sum
    to 1. A state is the base's last hidden state of a prompt, from which it would choose the first token."""

    mean: Array  # [D]
    scale: Array  # [D]
    head: Array  # [N, D]
    bias: Array  # [N]

    def weights(self, states: Array) -> Array:
        """States [P, D] -> weights [P, N]."""
        return softmax((states - self.mean) / self.scale @ self.head.T + self.bias)

    def chosen(self, state: Array) -> tuple[float, ...]:
        """One state [D] -> its N weights, rounded to thousandths. A state that is not finite gives NaN."""
        shares = np.round(self.weights(state[None])[0] * _STEPS)
        return tuple((shares / shares.sum()).tolist())


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predictor over an engine's lanes: the base's state of a prompt -> a weight for each of `lanes`."""

    profile: str
    predictor: Predictor
    lanes: tuple[str, ...]
    objectives: tuple[str, ...]  # in the order of the predictor's rows

    @property
    def read(self) -> ResolvedWeights:
        """The lanes that read the prompt: those that may get weight, and the base."""
        vector = tuple(float(lane in (BASE, *self.objectives)) for lane in self.lanes)
        return ResolvedWeights(self.lanes, vector, self.profile)

    def __call__(self, state: Tensor) -> tuple[float, ...]:
        weights = dict(zip(self.objectives, self.predictor.chosen(state.double().cpu().numpy()), strict=True))
        return tuple(weights.get(lane, 0.0) for lane in self.lanes)


def softmax(values: Array) -> Array:
    """Over the last dimension."""
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))
