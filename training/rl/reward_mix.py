"""How the scorers of one adapter become one reward: weights that stay, or that move at each validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class RewardMix(Protocol):
    """Scorer -> weight of its reward. A checkpoint holds `state`, JSON values."""

    @property
    def weights(self) -> Mapping[str, float]: ...

    def validated(self, means: Mapping[str, float]) -> None:
        """Told each scorer's mean of every validation, the base's first."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class FixedMix:
    """Weights that stay as they are."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights: Mapping[str, float] = dict(weights)

    @classmethod
    def even(cls, names: tuple[str, ...]) -> FixedMix:
        """1 / N each (Uniform Weighted, method.md section 5)."""
        return cls(dict.fromkeys(names, 1.0 / len(names)))

    def validated(self, means: Mapping[str, float]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass
