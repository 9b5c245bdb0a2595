"""Fits the head that predicts weights for a prompt (`emorl_core.bundles.predictor`).

It learns from a sweep in which every grid point was scored on the training prompts. Its target for a prompt is not the
best point, which depends on noise, but the mean of all points, weighted by a softmax of their scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from emorl_core.bundles.predictor import Predictor, softmax
from training.search.score_table import Array
from training.search.strategies.spaces import Point

STEPS = 4  # grid steps from 0 to 1 for sweeps per prompt: 5 points for two objectives, 15 for three
RIDGE = 0.1  # against weights of a head that has more inputs than prompts to learn from
_ITERATIONS = 500
_LEAST_SPREAD = 1e-6  # least deviation of scores and of state components: below it they carry no information


def targets(scores: Array, points: Sequence[Point]) -> Array:
    """Scores [P, K] of every point on every prompt -> weights [P, N]: the points' mean, each weighted by the softmax of
    the prompt's scores, which are shifted and divided by their own mean and deviation. Equal scores give equal weight
    to all points."""
    deviation = scores.std(axis=1, keepdims=True)
    normalised = np.where(
        deviation < _LEAST_SPREAD, 0.0, (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(deviation, 1e-300)
    )
    return np.asarray(softmax(normalised) @ np.array(points))


def fit(states: Array, wanted: Array, ridge: float = RIDGE) -> Predictor:
    """The head that minimises the cross-entropy to `wanted` [P, N] plus `ridge` / 2 times its squared norm. The problem
    is convex and starts at zero, so that equal data give equal heads.

    Args:
        states: [P, D], the base's last hidden state of each prompt.
    """
    mean, spread = states.mean(axis=0), states.std(axis=0)
    scale = np.where(spread < _LEAST_SPREAD, 1.0, spread)
    inputs = torch.from_numpy((states - mean) / scale).double()
    goal = torch.from_numpy(wanted).double()
    head = torch.zeros(goal.shape[1], inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(goal.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [head, bias], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        said = (inputs @ head.T + bias).log_softmax(-1)
        value = -(goal * said).sum(-1).mean() + ridge / 2 * head.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return Predictor(mean, scale, head.detach().numpy(), bias.detach().numpy())
