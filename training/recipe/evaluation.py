"""The `evaluation` section of a recipe: what methods are evaluated by, in addition to the rewards used in training."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from emorl_core.bundles.bundle import Name, SystemMessage
from emorl_core.kinds import Section
from emorl_core.scorers import parse_scorer
from training.config import is_default


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
    front_prompts: int = Field(0, ge=0, exclude_if=is_default(0))
    """Held-out prompts, the first, that every weight vector in steps of a tenth answers, for the front of each mix; 0:
    no fronts are measured."""
    predictor_prompts: int = Field(64, ge=2, exclude_if=is_default(64))
    """Training prompts, the first, that `per-prompt:predicted` learns weights from, at most."""
    instruction: SystemMessage | None = Field(None, exclude_if=is_default(None))
    """What `prompt-only` tells the bare base: one sentence or more that ask for all objectives; null: that method is
    left out. It takes the place of `chat.system`, or stands in front of `prompt_template`."""
    sentences: dict[Name, SystemMessage] = Field(default_factory=dict, exclude_if=is_default({}))
    """Objective to what its lane of `sentences` is told, likewise; with none, that method is left out."""

    @field_validator("scorers")
    @classmethod
    def _parsed(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, spec in value.items():
            parse_scorer(spec, where=f"evaluation.scorers.{name}")
        return value
