"""The ways to combine objectives, and what each of them accepts.

`hidden` mixes last hidden states, `probs` mixes probabilities, `weights` sums the adapters into one model.
"""

from __future__ import annotations

from collections.abc import Sequence

from emorl_core.errors import InvalidRequest, InvalidWeights
from emorl_core.types import COMBINE_MODES, Combine

_NO_ATTRIBUTION = {
    "probs": "attribution splits a mix of hidden states; it is not defined with combine: probs",
    "weights": "attribution splits a mix of hidden states; with combine: weights there is one summed model, "
    "and nothing to split",
}


def check_combine(
    combine: Combine, vector: Sequence[float], *, attribution: bool = False, param: str = "weights"
) -> None:
    """Check a request's mode. vector: resolved weights; param: their name in errors.

    Raises:
        InvalidRequest, InvalidWeights: an unknown mode, or one that does not accept these weights or attribution.
    """
    if combine not in COMBINE_MODES:
        raise InvalidRequest(f"combine is {combine!r}; allowed: {', '.join(COMBINE_MODES)}", param="combine")
    if combine == "probs" and min(vector) < 0:
        raise InvalidWeights(f"{param}: negative ones cannot mix probabilities; use combine: hidden", param=param)
    if attribution and combine in _NO_ATTRIBUTION:
        raise InvalidRequest(_NO_ATTRIBUTION[combine], param="attribution")
