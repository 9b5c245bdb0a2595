"""Convex polygons in a triangle, in barycentric coordinates: cut by straight lines, measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from emorl_core.types import Place

Polygon = tuple[Place, ...]  # corners in order; () is the empty polygon
WHOLE: Polygon = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def height(place: Place, plane: Sequence[float]) -> float:
    """The value at a place of the linear function with these values at the triangle's corners."""
    return place[0] * plane[0] + place[1] * plane[1] + place[2] * plane[2]


def cut(polygon: Polygon, plane: Sequence[float]) -> Polygon:
    """The part of a polygon where a plane is not negative (Sutherland and Hodgman 1974).

    The negated plane gives the other part, with identical new corners.
    """
    if not polygon:
        return ()
    heights = [height(place, plane) for place in polygon]
    kept: list[Place] = []
    before, above = polygon[-1], heights[-1]
    for place, here in zip(polygon, heights, strict=True):
        if (above > 0.0 > here) or (above < 0.0 < here):
            kept.append(_crossing(before, abs(above), place, abs(here)))
        if here >= 0.0:
            kept.append(place)
        before, above = place, here
    return tuple(kept)


def share(polygon: Polygon) -> float:
    """Its area, as a share of the triangle's."""
    turns = zip(polygon, (*polygon[1:], *polygon[:1]), strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in turns))


def width(polygon: Polygon) -> float:
    """The polygon's width: about the smallest distance between two parallel lines that enclose it; 1 for the
    triangle."""
    pairs = itertools.combinations(polygon, 2)
    longest = max((max(abs(x - y) for x, y in zip(a, b, strict=True)) for a, b in pairs), default=0.0)
    return share(polygon) / longest if longest else 0.0


def depth(polygon: Polygon, place: Sequence[float]) -> float:
    """The distance from a place to the nearest edge, in weights; negative outside."""
    turns = list(zip(polygon, (*polygon[1:], *polygon[:1]), strict=True))
    around = sum(a[0] * b[1] - b[0] * a[1] for a, b in turns)
    return min(math.copysign(1.0, around) * _beside(a, b, place) for a, b in turns)


def centre(polygon: Polygon) -> Place:
    """The mean of its corners, which lies inside."""
    x, y, z = (sum(column) / len(polygon) for column in zip(*polygon, strict=True))
    return (x, y, z)


def _beside(a: Place, b: Place, place: Sequence[float]) -> float:
    """The signed distance of a place from the line through two others."""
    turned = (b[0] - a[0]) * (place[1] - a[1]) - (b[1] - a[1]) * (place[0] - a[0])
    return math.sqrt(3.0) * turned / (math.dist(a, b) or 1.0)


def _crossing(a: Place, from_a: float, b: Place, from_b: float) -> Place:
    """The point on a line between two places at these distances on either side of it."""
    whole = from_a + from_b
    x, y, z = ((p * from_b + q * from_a) / whole for p, q in zip(a, b, strict=True))
    return (x, y, z)
