"""Weights that are anchored on the base: h_0 + sum w (h_i - h_0)."""

from __future__ import annotations

from typing import Any

import pytest

from emorl_core.errors import InvalidWeights
from emorl_core.weights import BASE, anchored

LANES = (BASE, "reflection", "empathy", "fluency")


def test_the_base_gets_what_the_others_leave() -> None:
    assert anchored(LANES, {"reflection": 0.5, "empathy": 0.25}).vector == (0.25, 0.5, 0.25, 0.0)
    assert anchored(LANES, {"reflection": 1.0, "fluency": 1.0}).vector == (-1.0, 1.0, 0.0, 1.0)
    assert anchored(LANES, {"reflection": -0.5}).vector == (1.5, -0.5, 0.0, 0.0)


@pytest.mark.parametrize("zeros", [{}, {"empathy": 0.0}, dict.fromkeys(LANES[1:], 0.0)])
def test_all_zeros_are_the_base(zeros: dict[str, float]) -> None:
    resolved = anchored(LANES, zeros)
    assert resolved.vector == (1.0, 0.0, 0.0, 0.0)
    assert resolved.as_dict() == {BASE: 1.0, "reflection": 0.0, "empathy": 0.0, "fluency": 0.0}


def test_one_objective_alone_is_itself() -> None:
    assert anchored(LANES, {"empathy": 1}).vector == (0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({BASE: 0.5}, "weights.base: anchored weights leave it out"),
        ({"empaty": 1.0}, "unknown objective 'empaty'"),
        ({"empathy": float("nan")}, "weights.empathy is nan"),
        ({"empathy": 10**400}, "weights.empathy is too large"),
        ({"empathy": "1"}, "weights.empathy is not a number"),
        ({"empathy": True}, "weights.empathy is not a number"),
    ],
)
def test_what_is_no_weight_is_refused(weights: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidWeights, match=said):
        anchored(LANES, weights)
