"""The `evaluation` section of a recipe: judges and sizes of the comparison."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from emorl_core.bundles.bundle import Name, SystemMessage
from emorl_core.kinds import Section
from emorl_core.scorers import parse_scorer
from training.config import is_default


class EvaluationSettings(Section):
    """Settings of `emorl evaluate`; they have no effect on training."""

    scorers: dict[Name, Any] = Field(default_factory=dict)
    """Name to scorer: judges, which no adapter was trained on, so that reward hacking shows."""
    test_prompts: int | None = Field(None, ge=2)
    """Number of test prompts to evaluate on, from the start of that part; null: all."""
    search_prompts: int = Field(64, ge=1)
    """Maximum number of validation prompts for the weight search, from the start of that part."""
    search_levels: int = Field(5, ge=1, le=30)
    """Levels of the weight search."""
    front_prompts: int = Field(0, ge=0, exclude_if=is_default(0))
    """Number of test prompts, from the start of that part, on which fronts are measured: every weight vector in steps
    of 0.1; 0: no fronts."""
    predictor_prompts: int = Field(64, ge=2, exclude_if=is_default(64))
    """Maximum number of training prompts, from the start of that part, that `per-prompt:predicted` is trained on."""
    instruction: SystemMessage | None = Field(None, exclude_if=is_default(None))
    """Instruction to the bare base for the method `prompt-only`, asking for all objectives; null: skip that method. It
    replaces `chat.system`, or is put before `prompt_template`."""
    sentences: dict[Name, SystemMessage] = Field(default_factory=dict, exclude_if=is_default({}))
    """Objective to the instruction of its lane for the method `sentences`, placed likewise; empty: skip that method."""

    @field_validator("scorers")
    @classmethod
    def _parsed(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, spec in value.items():
            parse_scorer(spec, where=f"evaluation.scorers.{name}")
        return value
