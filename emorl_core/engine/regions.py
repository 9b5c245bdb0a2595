"""The exact map of three weight vectors: every text of their mixes, each on a convex polygon.

The work is bounded. Beyond the bounds the request restarts as a sweep over the triangle's grid points, and reports why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from emorl_core.engine.exact import CornerLogits, Exact, ExactCompletion, ExactRequest
from emorl_core.engine.planes import envelope
from emorl_core.engine.polygons import WHOLE, Polygon, depth, share
from emorl_core.engine.sequences import Branch, Member
from emorl_core.engine.sweep import compositions
from emorl_core.types import FinishReason, Place, Region, RegionFound

_ROWS = 64  # grid points whose logits are held at once


@dataclass(frozen=True, slots=True)
class MapRequest(ExactRequest):
    """A request for every greedy text between its own weights and those of two other corners."""

    resolution: int = 20  # steps of the grid from one corner to another


@dataclass(frozen=True, slots=True)
class MapCompletion(ExactCompletion):
    """`regions`: the largest first; empty when cancelled. `why_not`: why it is not exact, if so."""

    regions: tuple[Region, ...] = ()
    why_not: str | None = None

    @property
    def completion_tokens(self) -> int:
        """The number of tokens of all texts together, as for a sweep."""
        return sum(len(region.token_ids) for region in self.regions)


@dataclass(frozen=True, slots=True)
class MapResult:
    """Regions, the largest first. In an exact map their polygons cover the triangle, and no two have the same tokens.
    Otherwise they contain the grid's points, each in one region."""

    corners: tuple[dict[str, float], ...]
    regions: tuple[Region, ...]
    why_not: str | None  # None: it is exact
    resolution: int
    min_width: float
    lane_row_steps: int

    @property
    def exact(self) -> bool:
        return self.why_not is None

    def at(self, place: Sequence[float]) -> Region:
        """The region of an exact map that contains a place: three numbers from 0, of sum 1."""
        return max(self.regions, key=lambda region: depth(region.polygon, place))


@dataclass(slots=True, eq=False)
class Patch(Member):
    """The part of a map on which one branch's tokens are chosen: a polygon, or points of the grid."""

    polygon: Polygon = ()
    points: tuple[Place, ...] = ()


@dataclass(slots=True, eq=False)
class _Patches(Exact):
    """Shared by the exact map and the grid."""

    asked_for = "maps"
    regions: list[Region] = field(default_factory=list)

    @property
    def found(self) -> int:
        return len(self.regions)

    def ended(self, member: Member, text: str, tokens: tuple[int, ...], reason: FinishReason) -> RegionFound:
        assert isinstance(member, Patch)  # made by `part`
        region = Region(member.polygon, member.points, text, tokens, reason)
        self.regions.append(region)
        return RegionFound(member.request.request_id, region, member.request.tag)

    def completion(self, reason: FinishReason, **common: Any) -> MapCompletion:
        found = [] if reason is FinishReason.CANCELLED else self.regions
        regions = tuple(sorted(found, key=lambda region: (-len(region.points), -share(region.polygon))))
        return MapCompletion(finish_reason=reason, regions=regions, why_not=self.why_not, **common)

    @property
    def why_not(self) -> str | None:
        return None


@dataclass(slots=True, eq=False)
class Regions(_Patches):
    """The `Chooser` of an exact map."""

    def part(self, whole: Member) -> Patch:
        return Patch(whole.request, whole.arrived, whole.lanes, whole.weights, whole.numbers, polygon=WHOLE)

    def divide(self, logits: CornerLogits, member: Member) -> list[tuple[Member, int]]:
        assert isinstance(member, Patch)
        parts = envelope(logits.affine(), member.polygon, self.request.min_width)
        parts.sort(key=lambda part: -share(part[1]))
        return [(replace(member, polygon=polygon), token) for token, polygon in parts]

    def split(self, branch: Branch, into: int) -> Branch | None:
        self.going += into - 1
        request = self.request
        if self.too_many():
            why = f"there are more than {request.most} regions ({request.most_named})"
        elif self.too_long(branch):
            why = f"it took more than {request.time_limit_s:g} seconds ({request.time_limit_named})"
        else:
            return None
        grid = Grid(request, why=why)
        (member,) = branch.members
        return branch.restarted(grid.part(member), grid)


@dataclass(slots=True, eq=False)
class Grid(_Patches):
    """The `Chooser` of a map that fell back to the grid."""

    why: str = ""

    @property
    def why_not(self) -> str:
        return self.why

    def part(self, whole: Member) -> Patch:
        assert isinstance(self.request, MapRequest)
        steps = self.request.resolution
        points = tuple((a / steps, b / steps, c / steps) for a, b, c in compositions(steps, 3))
        return Patch(whole.request, whole.arrived, whole.lanes, whole.weights, whole.numbers, points=points)

    def divide(self, logits: CornerLogits, member: Member) -> list[tuple[Member, int]]:
        assert isinstance(member, Patch)
        by_token: dict[int, list[Place]] = {}
        for first in range(0, len(member.points), _ROWS):
            points = member.points[first : first + _ROWS]
            tokens = logits.at(torch.tensor(points, dtype=torch.float64)).argmax(dim=-1).tolist()
            for point, token in zip(points, tokens, strict=True):
                by_token.setdefault(token, []).append(point)
        parts = sorted(by_token.items(), key=lambda part: -len(part[1]))
        return [(replace(member, points=tuple(points)), token) for token, points in parts]

    def split(self, branch: Branch, into: int) -> None:
        """The number of points bounds the work."""
        del branch
        self.going += into - 1
