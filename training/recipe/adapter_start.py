"""The `adapter_start` section of a recipe: supervised fitting of the adapters before reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from emorl_core.bundles.bundle import Name
from training.data.sources import parse_source
from training.rl.settings import AdapterFit


class AdapterStart(AdapterFit):
    """Supervised fine-tuning of the adapters before reinforcement learning; the base stays unchanged. All objectives
    are trained in lockstep; one without `sources` starts with an adapter that changes nothing."""

    sources: dict[Name, tuple[Any, ...]] = Field(min_length=1)
    """Objective to data sets with replies that show it. Prompts that `data` validates or tests on are left out, and so
    are replies longer than `rl.max_new_tokens`."""

    @field_validator("sources")
    @classmethod
    def _kinds(cls, value: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, sources in value.items():
            if not sources:
                raise ValueError(f"sources.{name}: name at least one data set")
            for number, source in enumerate(sources):
                parse_source(source, where=f"adapter_start.sources.{name}.{number}")
        return value

    def restricted(self, names: Sequence[str]) -> AdapterStart | None:
        """With the sources of these objectives only; None if they have none."""
        sources = {name: own for name, own in self.sources.items() if name in names}
        return self.model_copy(update={"sources": sources}) if sources else None
