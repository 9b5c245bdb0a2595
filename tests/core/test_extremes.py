"""Numbers at the very ends of what is allowed: the engine computes with them in float32 and every result is finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.types import MIN_POSITIVE, MIN_WIDTH
from emorl_core.weights import MAX_WEIGHT, MIN_WEIGHT
from tests.core.conftest import PROMPTS


@pytest.mark.parametrize(
    "weights",
    [
        {"reflection": MIN_WEIGHT},
        {"reflection": MAX_WEIGHT, "empathy": -MAX_WEIGHT, "fluency": MAX_WEIGHT},
        {"reflection": MAX_WEIGHT, "base": MIN_WEIGHT},
    ],
    ids=["least", "most", "both"],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": MIN_POSITIVE, "repetition_penalty": MIN_POSITIVE},
        {"temperature": MIN_POSITIVE, "repetition_penalty": 100.0, "top_p": MIN_POSITIVE},
        {"temperature": 100.0, "top_k": 3},
    ],
    ids=["greedy", "small", "narrow", "hot"],
)
def test_every_result_is_finite(weights: dict[str, float], options: dict[str, Any], plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    done = ensemble.generate(
        PROMPTS[0], weights, normalize=False, max_new_tokens=6, min_new_tokens=3, seed=1, attribution=True, **options
    )
    assert len(done.token_ids) >= 3
    assert all(math.isfinite(value) for value in done.logprobs)
    assert all(math.isfinite(part) for each in done.attributions for part in each.parts)


def test_the_smallest_temperature_takes_the_most_likely_token(plain_bundle: Path) -> None:
    """It is a division, not a limit: 1e-39 gave whatever infinities left."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    greedy = ensemble.generate(PROMPTS[1], max_new_tokens=12)
    assert ensemble.generate(PROMPTS[1], max_new_tokens=12, temperature=MIN_POSITIVE, seed=3).text == greedy.text


@pytest.mark.parametrize("min_width", [0.0, -1.0, 1e-320, 9e-10, 1.1, math.nan, math.inf, 10**400, True])
def test_a_width_that_no_division_reaches_is_refused(min_width: float, plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    with pytest.raises(InvalidRequest, match=f"allowed: a number from {MIN_WIDTH:g} to 1") as caught:
        ensemble.sweep_line(PROMPTS[0], {"reflection": 1}, {"empathy": 1}, min_width=min_width)
    assert caught.value.param == "min_width"
