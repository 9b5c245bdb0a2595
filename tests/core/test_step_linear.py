"""A linear layer as a step function reads it, against the layer itself."""

from __future__ import annotations

import pytest
import torch

from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.step_linear import StepLinear, StepTensors

ONE_EACH = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]
MIXED = [[0.4, 0.4, 0.2], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.5, 0.0, 2.0]]


def layer(outs: list[int]) -> LaneLinear:
    """Three adapters of rank 2 on projections of 8 features, with a bias."""
    made = LaneLinear(torch.randn(sum(outs), 8), outs=outs, bias=torch.randn(sum(outs)))
    b = torch.zeros(len(outs), 3, 2, max(outs))
    for p, out in enumerate(outs):
        b[p, :, :, :out] = torch.randn(3, 2, out)
    made.attach(torch.randn(len(outs), 3, 2, 8), b)
    return made


@pytest.mark.parametrize("coefficients", [ONE_EACH, MIXED], ids=["one adapter each", "mixed adapters"])
@pytest.mark.parametrize("outs", [[6], [6, 6, 6], [6, 2, 2]], ids=["one", "equal", "unequal"])
def test_a_step_function_gives_what_the_layer_gives(outs: list[int], coefficients: list[list[float]]) -> None:
    torch.manual_seed(0)
    linear = layer(outs)
    index = LaneIndex(torch.tensor(coefficients))
    x = torch.randn(index.rows, 8)
    with torch.inference_mode():
        expected = linear.side_by_side(x, index)
        tensors = StepTensors([], [])
        step = StepLinear.of(linear, tensors)
        apart = step.apart(x, *index.used(), iter(tensors.parameters))
        torch.testing.assert_close(torch.cat(apart, dim=1), expected, atol=1e-5, rtol=0.0)
        if len(set(outs)) == 1:
            together = step(x, *index.used(), iter(tensors.parameters))
            torch.testing.assert_close(together.flatten(1), expected, atol=1e-5, rtol=0.0)
