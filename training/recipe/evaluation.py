"""The `evaluation` section of a recipe: what judges the methods besides the rewards they were trained on."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from emorl_core.bundle import Name
from emorl_core.kinds import Section
from emorl_core.scorers import parse_scorer


class EvaluationSettings(Section):
    """For `emorl evaluate`. Nothing here changes what is trained."""

    scorers: dict[Name, Any] = Field(default_factory=dict)
    """Name to scorer, as an objective's: models that no adapter was trained on, so that reward hacking shows."""
    test_prompts: int | None = Field(None, ge=2)
    """Held-out prompts that every method answers, the first of the test part; null: all."""
    search_prompts: int = Field(64, ge=1)
    """Validation prompts that weights are searched on, at most, the first ones."""
    search_levels: int = Field(5, ge=1, le=30)
    """Levels of the weight search, for every method that has weights."""

    @field_validator("scorers")
    @classmethod
    def _parsed(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, spec in value.items():
            parse_scorer(spec, where=f"evaluation.scorers.{name}")
        return value
