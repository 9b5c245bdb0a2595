"""Every rule about weights (method.md section 3), with the one line a person reads when they break it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from emorl_core.errors import InvalidWeights
from emorl_core.weights import BASE, MAX_WEIGHT, MIN_WEIGHT, anchored, named, resolve

LANES = (BASE, "reflection", "empathy", "fluency")
PROFILES = {"balanced": {"reflection": 1.0, "empathy": 1.0}, "bare": {"base": 2.0}}


def vector(weights: dict[str, Any] | None = None, profile: str | None = None, **options: Any) -> tuple[float, ...]:
    return resolve(LANES, weights, profile, profiles=PROFILES, default_profile="balanced", **options).vector


def test_names_become_numbers_in_lane_order_that_sum_to_one() -> None:
    assert vector({"empathy": 3, "reflection": 1}) == (0.0, 0.25, 0.75, 0.0)
    assert vector({"base": 2, "fluency": 2.0}) == (0.5, 0.0, 0.0, 0.5)


@pytest.mark.parametrize("value", [5e-324, 1e-300, 1.0, 1e300, 1.7976931348623157e308, 10**300])
def test_normalising_neither_underflows_nor_overflows(value: float) -> None:
    assert vector({"reflection": value, "empathy": value, "fluency": value}) == (0.0, 1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize("weights", [{"reflection": 0.1, "empathy": 0.2, "fluency": 0.7}, {"base": 1e-9, "empathy": 7}])
def test_a_normalised_vector_sums_to_one(weights: dict[str, float]) -> None:
    assert math.fsum(vector(weights)) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("value", [MIN_WEIGHT, -MIN_WEIGHT, MAX_WEIGHT, -MAX_WEIGHT, 1, 0.5])
def test_sizes_that_float32_mixes_well_are_used_as_they_are(value: float) -> None:
    assert vector({"reflection": value}, normalize=False) == (0.0, value, 0.0, 0.0)


@pytest.mark.parametrize("value", [5e-324, 1e-320, 1e-46, 1e-39, 9e-21, 1.1e6, 1e38, 1e39, 1.7e308, 10**300])
@pytest.mark.parametrize("sign", [1, -1])
def test_sizes_that_float32_cannot_mix_are_refused(value: float, sign: int) -> None:
    for beside in ({}, {"empathy": 1.0}):
        with pytest.raises(InvalidWeights, match=r"allowed: 0, or a size from 1e-20 to 1e\+06") as caught:
            vector({**beside, "reflection": sign * value}, normalize=False)
        assert caught.value.param == "weights.reflection"
        assert len(caught.value.message) < 150


@pytest.mark.parametrize(("small", "large"), [(1e-320, 1.0), (1e-21, 1.0), (1.0, 1e30), (5e-324, 1.7e308)])
def test_a_weight_that_vanishes_beside_the_others_is_refused(small: float, large: float) -> None:
    with pytest.raises(InvalidWeights, match="allowed: 0, or a size of 1e-20 of the sum or more") as caught:
        vector({"empathy": small, "fluency": large})
    assert caught.value.param == "weights.empathy"


def test_what_rounding_leaves_of_the_base_is_a_weight_too() -> None:
    """1 - (0.7 + 0.2 + 0.1) need not be 0, and never is too small."""
    for weights in ({"reflection": 0.7, "empathy": 0.2, "fluency": 0.1}, {"reflection": 1 - 2**-53}):
        assert abs(anchored(LANES, weights).vector[0]) < 1e-15


def test_without_normalizing_the_numbers_are_used_as_they_are() -> None:
    assert vector({"reflection": -2, "empathy": 5.5}, normalize=False) == (0.0, -2.0, 5.5, 0.0)


def test_a_profile_is_resolved_and_echoed_and_the_default_is_used_when_nothing_is_named() -> None:
    resolved = resolve(LANES, None, "bare", profiles=PROFILES, default_profile="balanced")
    assert (resolved.vector, resolved.profile) == ((1.0, 0.0, 0.0, 0.0), "bare")
    default = resolve(LANES, profiles=PROFILES, default_profile="balanced")
    assert (default.vector, default.profile) == ((0.0, 0.5, 0.5, 0.0), "balanced")
    assert resolve(LANES, {"empathy": 1}, profiles=PROFILES, default_profile="balanced").profile is None


def test_the_echo_lists_every_objective_and_base_only_when_it_has_weight() -> None:
    assert resolve(LANES, {"empathy": 1}).as_dict() == {"reflection": 0.0, "empathy": 1.0, "fluency": 0.0}
    assert named(LANES, (0.5, 0.0, 0.0, 0.5)) == {"base": 0.5, "reflection": 0.0, "empathy": 0.0, "fluency": 0.5}
    with pytest.raises(ValueError, match="shorter"):
        named(LANES, (1.0,))


@pytest.mark.parametrize(
    ("weights", "profile", "options", "message", "param"),
    [
        ({"empathy": 1}, "bare", {}, "weights and profile exclude each other", "weights"),
        (None, "none such", {}, "profile 'none such' is unknown; profiles: balanced, bare", "profile"),
        ({"emapthy": 1}, None, {}, "unknown objective 'emapthy'; objectives: base, reflection, empathy, fluency", "weights.emapthy"),
        ({"empathy": math.nan}, None, {}, "weights.empathy is nan; allowed: finite numbers", "weights.empathy"),
        ({"empathy": math.inf}, None, {}, "weights.empathy is inf; allowed: finite numbers", "weights.empathy"),
        ({"empathy": -math.inf}, None, {"normalize": False}, "weights.empathy is -inf", "weights.empathy"),
        ({"empathy": 10**400}, None, {}, "weights.empathy is too large; allowed: finite numbers", "weights.empathy"),
        ({"empathy": True}, None, {}, "weights.empathy is not a number", "weights.empathy"),
        ({"empathy": "1"}, None, {}, "weights.empathy is not a number", "weights.empathy"),
        ({"empathy": None}, None, {}, "weights.empathy is not a number", "weights.empathy"),
        ({"empathy": 1, "reflection": -0.5}, None, {}, "weights.reflection is -0.5; negative weights are allowed only with normalize: false", "weights.reflection"),
        ({}, None, {}, "weights: all are zero, which makes every logit zero", "weights"),
        ({"empathy": 0, "base": -0.0}, None, {}, "all are zero", "weights"),
        ({"empathy": 0.0}, None, {"normalize": False}, "all are zero", "weights"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(
    weights: dict[str, Any] | None, profile: str | None, options: dict[str, bool], message: str, param: str
) -> None:
    with pytest.raises(InvalidWeights) as caught:
        vector(weights, profile, **options)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.param == param
    assert caught.value.code == "invalid_weights"


def test_with_neither_weights_nor_a_default_the_objectives_are_listed() -> None:
    with pytest.raises(InvalidWeights, match="no default profile; name objectives among base, reflection"):
        resolve(LANES, profiles=PROFILES)


def test_a_prompt_put_in_the_place_of_a_name_does_not_come_back() -> None:
    text = "my husband died in march and I have not told anybody about it " * 3
    for weights, profile in (({text: 1.0}, None), (None, text)):
        with pytest.raises(InvalidWeights) as caught:
            vector(weights, profile)
        assert "anybody" not in caught.value.message
        assert len(caught.value.message) < 150
