"""Names and numbers -> the vector the engine uses. Every rule about weights lives here (method.md section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emorl_core.errors import InvalidWeights, shown

BASE = "base"  # lane 0: the model without any adapter
# Magnitudes allowed for resolved numbers other than 0. Mixing is float32, where 1e-39 is nearly 0, and 1e38 times a
# hidden state overflows.
MIN_WEIGHT = 1e-20
MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class ResolvedWeights:
    """`vector` has one float per lane, in the order of `lanes`; lane 0 is always `base`."""

    lanes: tuple[str, ...]
    vector: tuple[float, ...]
    profile: str | None = None

    def as_dict(self) -> dict[str, float]:
        """Objective -> number, as returned in answers: every objective, and `base` if it has weight."""
        return named(self.lanes, self.vector)


def named(lanes: Sequence[str], vector: Sequence[float]) -> dict[str, float]:
    """A weight vector as returned in answers: every objective, zeros included, and `base` only if it has weight."""
    return {name: value for name, value in zip(lanes, vector, strict=True) if name != BASE or value != 0.0}


def resolve(
    lanes: Sequence[str],
    weights: Mapping[str, float] | None = None,
    profile: str | None = None,
    *,
    profiles: Mapping[str, Mapping[str, float] | None] | None = None,
    default_profile: str | None = None,
    normalize: bool = True,
) -> ResolvedWeights:
    """Resolve a request's weights or profile into one vector over `lanes`.

    `weights` and `profile` exclude each other; with neither, `default_profile` is used. `profiles` has None for one
    that predicts weights, which only a request with a prompt can use. With `normalize` (the default) negative numbers
    are refused and the vector is scaled to sum 1; without it the numbers are used as they are. Numbers other than 0
    must have a magnitude from MIN_WEIGHT to MAX_WEIGHT.

    Raises:
        InvalidWeights: one line that names the objective or profile, the value and what is allowed.
    """
    profiles = profiles or {}
    if weights is not None and profile is not None:
        raise InvalidWeights("weights and profile exclude each other; name one of them", param="weights")
    if weights is None:
        profile = profile if profile is not None else default_profile
        if profile is None:
            raise InvalidWeights(
                f"weights: none given and the bundle has no default profile; name objectives among {_list(lanes)}",
                param="weights",
            )
        if profile not in profiles:
            raise InvalidWeights(f"profile {shown(profile)} is unknown; profiles: {_list(profiles)}", param="profile")
        weights = profiles[profile]
        if weights is None:
            fixed = _list([name for name, own in profiles.items() if own is not None])
            raise InvalidWeights(
                f"profile {shown(profile)} predicts weights for each prompt; allowed here: weights, or one of the "
                f"profiles {fixed}",
                param="profile",
            )
    return ResolvedWeights(tuple(lanes), _vector(lanes, weights, normalize), profile)


def anchored(lanes: Sequence[str], weights: Mapping[str, float]) -> ResolvedWeights:
    """h_0 + sum_i w_i (h_i - h_0): the base's state, moved by each objective's difference from it.

    As a mix of lanes that is the objectives' numbers as they are, and 1 - sum w for `base`, which may be negative. All
    zeros are the base itself. Multiples of one vector are different mixes here, unlike those of `resolve`.

    Raises:
        InvalidWeights: as `resolve` without `normalize`, and for a number given to `base`.
    """
    if BASE in weights:
        raise InvalidWeights(f"weights.{BASE}: anchored weights leave it out; it gets 1 - sum", param=f"weights.{BASE}")
    rest = 1.0 - math.fsum(value for name, value in weights.items() if name in lanes and _is_finite(value))
    return ResolvedWeights(tuple(lanes), _vector(lanes, {**weights, BASE: rest}, normalize=False))


def _vector(lanes: Sequence[str], weights: Mapping[str, float], normalize: bool) -> tuple[float, ...]:
    for name, value in weights.items():
        where = f"weights.{str(name)[:40]}"
        if name not in lanes:
            raise InvalidWeights(f"weights: unknown objective {shown(name)}; objectives: {_list(lanes)}", param=where)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidWeights(f"{where} is not a number; allowed: finite numbers", param=where)
        if not _finite_float(value):
            raise InvalidWeights(f"{where} is {_number(value)}; allowed: finite numbers", param=where)
        if normalize and value < 0:
            raise InvalidWeights(
                f"{where} is {value:g}; negative weights are allowed only with normalize: false", param=where
            )
    vector = [float(weights.get(name, 0.0)) for name in lanes]
    largest = max(abs(value) for value in vector)
    if largest == 0.0:
        raise InvalidWeights(
            f"weights: all are zero, which makes every logit zero; give at least one of {_list(lanes)} a weight",
            param="weights",
        )
    used = vector
    if normalize:
        # Dividing by the largest first keeps subnormal and huge numbers from under- or overflowing in the sum.
        used = [value / largest for value in vector]
        total = math.fsum(used)
        used = [value / total for value in used]
    for name, value, given in zip(lanes, used, vector, strict=True):
        if given != 0.0 and not MIN_WEIGHT <= abs(value) <= MAX_WEIGHT:
            allowed = f"of {MIN_WEIGHT:g} of the sum or more" if normalize else f"from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}"
            raise InvalidWeights(
                f"weights.{name} is {given:g}; allowed: 0, or a size {allowed}", param=f"weights.{name}"
            )
    return tuple(used)


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and _finite_float(value)


def _finite_float(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an int beyond float's range
        return False


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else "too large"


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) if names else "none"
