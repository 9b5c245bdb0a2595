"""The HTTP models of `POST /sweep/map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emorl_core.engine.polygons import share
from emorl_core.engine.regions import MapCompletion, MapRequest
from emorl_core.engine.sweep import grid_size
from emorl_core.errors import InvalidRequest
from emorl_core.frontend import Frontend
from emorl_core.types import MIN_WIDTH, Place, Region
from emorl_core.weights import named
from server.api.asked import PromptFields
from server.api.fields import FirstFault, Int, LengthFields, Weights

# Most regions of one request that run at once: more would slow down every other request's steps.
_SLOTS = 4
Corners = Annotated[list[Weights], FirstFault(), Field(min_length=3, max_length=3)]


class MapBody(PromptFields, LengthFields):
    """`POST /sweep/map`: every greedy text of all mixes of three weight vectors, and the exact borders between them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "I can't keep up at work.", "max_new_tokens": 32},
                {
                    "prompt": "I can't keep up at work.",
                    "corners": [{"reflection": 1.0}, {"empathy": 1.0}, {"reflection": 0.5, "base": 0.5}],
                    "max_new_tokens": 32,
                    "max_regions": 200,
                    "resolution": 20,
                    "stream": True,
                },
            ]
        }
    )

    corners: Corners | None = Field(
        None, description="Three weight vectors. Null: each objective alone, in a bundle with three."
    )
    normalize: bool = Field(True, description="Scale each corner to sum 1. Negative weights need false.")
    min_width: float = Field(1e-7, ge=MIN_WIDTH, le=1.0, description="Narrower polygons are not divided.")
    max_regions: Int | None = Field(
        None, ge=1, description="With more it is the grid instead. Null: the server's max_sweep."
    )
    resolution: Int = Field(20, ge=1, description="Steps of that grid from corner to corner.")
    max_new_tokens: Int = Field(64, ge=1, description="Most tokens of each text; the server's own limit is in /info.")
    stream: bool = Field(False, description="Answer with server-sent events, regions as they are found.")

    def to_core(
        self, ensemble: Frontend, request_id: str, *, max_new_tokens: int, max_sweep: int, time_limit_s: float
    ) -> MapRequest:
        """Raises `InvalidRequest` and its kinds. `max_new_tokens`, `max_sweep`, `time_limit_s`: the server's limits."""
        if self.max_regions is not None and self.max_regions > max_sweep:
            raise InvalidRequest(
                f"max_regions is {self.max_regions}; allowed: up to {max_sweep} (max_sweep, a setting of this server)",
                param="max_regions",
            )
        own = "max_regions" if self.max_regions is not None else "max_sweep, a setting of this server"
        return ensemble.map_request(
            self.prompt,
            self.corners,
            messages=self.chat,
            resolution=self.resolution,
            max_points=max_sweep,
            min_width=self.min_width,
            request_id=request_id,
            most=self.max_regions or max_sweep,
            most_named=own,
            most_slots=_SLOTS,
            time_limit_s=time_limit_s,
            time_limit_named="sweep_map_timeout_s, a setting of this server",
            **self.options(max_new_tokens=max_new_tokens),
        )


class RegionText(BaseModel):
    """Every mix in this region gives this text. A place is three numbers of sum 1, the share of each corner."""

    polygon: list[Place] = Field(description="Of an exact map: the polygon's corners in turn.")
    points: list[Place] = Field(description="Of a grid: its points in this region.")
    share: float = Field(description="Of the triangle's area, or of the grid's points.")
    text: str
    finish_reason: Literal["stop", "length"]
    completion_tokens: int


class MapResponse(BaseModel):
    """The answer of `POST /sweep/map`, and the last event of its stream (with `"type": "done"`).

    If exact, the polygons cover the triangle, and no two have the same tokens. Else the regions contain every grid
    point once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "map-0f3a",
                    "model": "counselor-demo",
                    "corners": [
                        {"reflection": 1.0, "empathy": 0.0, "fluency": 0.0},
                        {"reflection": 0.0, "empathy": 1.0, "fluency": 0.0},
                        {"reflection": 0.0, "empathy": 0.0, "fluency": 1.0},
                    ],
                    "exact": True,
                    "why_not": None,
                    "resolution": 20,
                    "regions": [
                        {
                            "polygon": [[1.0, 0.0, 0.0], [0.58, 0.42, 0.0], [0.58, 0.0, 0.42]],
                            "points": [],
                            "share": 0.1764,
                            "text": "Work asks more than you have.",
                            "finish_reason": "stop",
                            "completion_tokens": 8,
                        },
                    ],
                    "lane_row_steps": 126,
                }
            ]
        }
    )

    id: str
    model: str
    corners: list[dict[str, float]] = Field(description="Resolved weights at the three corners.")
    exact: bool
    why_not: str | None = Field(description="Which limit made it the grid; null: it is exact.")
    resolution: int = Field(description="Of the grid, where it is one.")
    regions: list[RegionText] = Field(description="The largest first.")
    lane_row_steps: int = Field(description="Lane rows computed, one token each.")


def region_text(region: Region, resolution: int) -> dict[str, Any]:
    """`RegionText` as a plain dictionary."""
    points = len(region.points) / grid_size(3, resolution)
    return {
        "polygon": region.polygon,
        "points": region.points,
        "share": share(region.polygon) if region.polygon else points,
        "text": region.text,
        "finish_reason": region.finish_reason.value,
        "completion_tokens": len(region.token_ids),
    }


def map_answer(model: str, lanes: Sequence[str], request: MapRequest, completion: MapCompletion) -> dict[str, Any]:
    """`MapResponse` as plain dictionaries."""
    return {
        "id": request.request_id,
        "model": model,
        "corners": [named(lanes, corner) for corner in request.corners],
        "exact": completion.why_not is None,
        "why_not": completion.why_not,
        "resolution": request.resolution,
        "regions": [region_text(region, request.resolution) for region in completion.regions],
        "lane_row_steps": completion.lane_row_steps,
    }
