"""Shared by recipes: their error, and where a model comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import model_validator

from emorl_core.errors import EmorlError
from emorl_core.kinds import Section


class RecipeError(EmorlError):
    """An invalid recipe or override; one line with field, value and what is allowed."""

    code = "invalid_recipe"


def is_default(value: object) -> Callable[[Any], bool]:
    """For `exclude_if` of a key that was added later: a recipe without it keeps its dump and its hash, so that runs
    that began before can be resumed."""
    return lambda found: bool(found == value)


class Start(Section):
    """Where a model comes from: exactly one of `hub`, `path` and the field that `other` names."""

    other: ClassVar[str]

    hub: str | None = None
    """Hugging Face hub id, such as `google-t5/t5-base` or `HuggingFaceTB/SmolLM2-135M-Instruct`."""
    revision: str | None = None
    """Branch, tag or commit of `hub`; null: the default branch."""
    path: str | None = None
    """Checkpoint folder, relative to the recipe's folder."""

    @model_validator(mode="after")
    def _one_of(self) -> Start:
        if sum(getattr(self, name) is not None for name in ("hub", "path", self.other)) != 1:
            raise ValueError(f"give exactly one of hub, path and {self.other}")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self
