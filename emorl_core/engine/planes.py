"""The upper envelope of V planes over a convex polygon: the token with the largest logit at each place."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl_core.engine.polygons import Polygon, centre, cut, height, width
from emorl_core.types import Place

_SLACK = 1e-12  # logit differences below this are float64 rounding
_FINEST = 1e-13  # narrower parts are rounding as well


def envelope(logits: Tensor, polygon: Polygon, min_width: float) -> list[tuple[int, Polygon]]:
    """(token id, the part of the polygon where its logit is the largest), one per token.

    Suppose a token beats the assumed winner somewhere in a part. Both logits are linear, so it also beats it in one of
    the part's corners. So all tokens are compared at the corners, until no corner has a better token than those known.

    logits: [3, V] float64, at the triangle's corners. A polygon narrower than `min_width` is not divided.
    """
    if width(polygon) <= min_width:
        ((_, token),) = _largest(logits, [centre(polygon)])
        return [(token, polygon)]
    planes: dict[int, list[float]] = {}
    parts: dict[int, Polygon] = {}
    to_ask = list(polygon)
    while to_ask:
        asked, to_ask = to_ask, []
        for place, (value, token) in zip(asked, _largest(logits, asked), strict=True):
            known = max((height(place, plane) for plane in planes.values()), default=float("-inf"))
            if token in planes or value <= known + _SLACK * (1.0 + abs(value)):
                continue
            plane: list[float] = logits[:, token].tolist()
            own = polygon
            for other, its in planes.items():
                over = [a - b for a, b in zip(plane, its, strict=True)]
                own, parts[other] = cut(own, over), cut(parts[other], [-each for each in over])
            planes[token], parts[token] = plane, own
            to_ask += own
    return [(token, part) for token, part in parts.items() if width(part) > _FINEST]


def _largest(logits: Tensor, places: list[Place]) -> list[tuple[float, int]]:
    """The largest logit at each place, and its token."""
    values = torch.tensor(places, dtype=logits.dtype, device=logits.device) @ logits
    best = values.max(dim=1)
    return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))
