"""Base of every part of a recipe: frozen, documented, and unknown keys refused with the nearest known one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from emorl_core.errors import EmorlError
from training.spec import nearest


class RecipeError(EmorlError):
    """A recipe, or an override of it, that cannot be used; one line with field, value and what is allowed."""

    code = "invalid_recipe"


class Section(BaseModel):
    """The string under a field says what it means and in which unit; `docs/reference/recipe.md` lists them all."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    raise ValueError(
                        f"unknown key {_cut(key)}{nearest(str(key), cls.model_fields)}; known keys: {known}"
                    )
        return values


def _cut(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 60 else text[:57] + "..."
