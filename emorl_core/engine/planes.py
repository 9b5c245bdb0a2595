"""The upper envelope of V planes over a convex polygon: which token has the largest logit where."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl_core.engine.polygons import Polygon, centre, cut, height, width
from emorl_core.types import Place

_SLACK = 1e-12  # of a logit: less is rounding in float64
_FINEST = 1e-13  # narrower parts are rounding too


def envelope(logits: Tensor, polygon: Polygon, min_width: float) -> list[tuple[int, Polygon]]:
    """(token id, the part of the polygon where its logit is the largest), tokens all different.

    A token that is the largest anywhere in a part in which another one is believed to be so, is larger than that one in
    a corner of the part, both being linear. So the corners are asked, with every token, until no corner knows a better
    one than those that are known.

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
    """The largest logit at each place, and whose it is."""
    values = torch.tensor(places, dtype=logits.dtype, device=logits.device) @ logits
    best = values.max(dim=1)
    return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))
