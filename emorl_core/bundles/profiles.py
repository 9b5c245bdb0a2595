"""A profile in `bundle.yaml`: named weights, or a predictor that chooses them for each prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import to_json

from emorl_core.config import Strict
from emorl_core.errors import InvalidWeights, one_line, shown
from emorl_core.weights import BASE, resolve

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_MOST_ORIGIN = 2**16  # bytes of a profile's origin as JSON


class PredictorSpec(Strict):
    """Where a predictor is stored, and which objectives it weighs."""

    path: str  # folder inside the bundle
    sha256: Sha256  # over the names and contents of its files
    objectives: list[str] = Field(min_length=2)  # in the order of the predictor's rows


class ProfileSpec(Strict):
    """Named weights, or a predictor that chooses them for each prompt. `origin`: where they came from (a search, a
    person), as plain JSON data."""

    weights: dict[str, float] | None = None
    predictor: PredictorSpec | None = None
    origin: dict[str, Any] = Field(default_factory=dict)

    @field_validator("origin", mode="before")
    @classmethod
    def _origin(cls, value: object) -> object:
        try:
            text = to_json(value, inf_nan_mode="null")
        except ValueError as error:
            raise ValueError(f"must be plain JSON data: {one_line(error)}") from None
        if len(text) > _MOST_ORIGIN:
            raise ValueError(f"has {len(text):,} bytes as JSON; allowed: up to {_MOST_ORIGIN:,}")
        return json.loads(text)

    @model_validator(mode="after")
    def _one_of(self) -> ProfileSpec:
        if (self.weights is None) == (self.predictor is None):
            raise ValueError("give exactly one of weights and predictor")
        return self

    @property
    def kind(self) -> Literal["fixed", "predicted"]:
        return "fixed" if self.predictor is None else "predicted"

    def check(self, lanes: Sequence[str]) -> None:
        """lanes: of the bundle. Raises `InvalidWeights`."""
        if self.predictor is None:
            resolve(lanes, self.weights)
            return
        names = self.predictor.objectives
        known = [lane for lane in lanes if lane != BASE]
        for name in names:
            if name not in known:
                raise InvalidWeights(
                    f"predictor.objectives: unknown objective {shown(name)}; objectives: {', '.join(known)}",
                    param="predictor.objectives",
                )
        if len(set(names)) < len(names):
            raise InvalidWeights("predictor.objectives: one is named twice", param="predictor.objectives")
