"""The product of several scorers' scores. A guard as a factor can only lower the score."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from emorl_core.scorers.base import Checked, Context, Scorer, ScorerConfig


class ProductConfig(ScorerConfig):
    """`of`: two or more scorers, each specified as on its own."""

    kind: Literal["product"] = "product"
    of: tuple[dict[str, Any] | str, ...] = Field(min_length=2)

    @property
    def parts(self) -> tuple[object, ...]:
        return self.of

    def build(self, context: Context) -> Scorer:
        assert context.part is not None  # set by the registry, which builds every scorer
        return Product([context.part(spec, f"scorer.of.{index}") for index, spec in enumerate(self.of)])


class Product:
    """The product; its name joins the names of its factors."""

    def __init__(self, factors: list[Checked]) -> None:
        self.factors = factors
        self.__name__ = "*".join(factor.__name__ for factor in factors)

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        columns = [factor(prompts, completions, **kwargs) for factor in self.factors]
        return [math.prod(scores) for scores in zip(*columns, strict=True)]
