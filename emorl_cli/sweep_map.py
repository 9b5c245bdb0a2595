"""The output of `emorl sweep --map`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emorl_core.engine.regions import MapResult

MAX_REGIONS = 4096


def map_document(found: MapResult) -> dict[str, Any]:
    """For --json."""
    return {
        "corners": list(found.corners),
        "exact": found.exact,
        "why_not": found.why_not,
        "resolution": found.resolution,
        "regions": [
            {
                "polygon": region.polygon,
                "points": region.points,
                "text": region.text,
                "finish_reason": str(region.finish_reason),
            }
            for region in found.regions
        ],
        "min_width": found.min_width,
        "lane_row_steps": found.lane_row_steps,
    }


def print_map(found: MapResult) -> None:
    """The texts with their shares of the triangle, the largest first."""
    from emorl_core.engine.polygons import share

    for name, corner in zip("ABC", found.corners, strict=True):
        print(f"{name}: {written(corner)}")
    print()
    points = sum(len(region.points) for region in found.regions)
    for region in found.regions:
        print(" ".join(region.text.split()))
        if region.polygon:
            print(f"    {share(region.polygon):.4%}, {len(region.polygon)} corners")
        else:
            print(f"    {len(region.points)} of {points} points")
    kind = "exact" if found.exact else f"not exact, since {found.why_not}; a grid in steps of 1/{found.resolution}"
    texts = len({region.text for region in found.regions})
    print(f"\n{texts} texts, {len(found.regions)} regions; {kind}; {found.lane_row_steps} lane-row steps")


def written(weights: Mapping[str, float]) -> str:
    """The non-zero weights, on one line."""
    return " ".join(f"{name}={value:.4g}" for name, value in weights.items() if value) or "none"
