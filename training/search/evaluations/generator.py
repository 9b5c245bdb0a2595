"""The generator of a search: greedy replies for points."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Protocol

from emorl_core.engine.sweep import SweepResult
from emorl_core.ensemble import Ensemble
from training.search.strategies.spaces import Point, ray


class Generator(Protocol):
    """Greedy replies to one list of prompts, under any number of points."""

    def key(self, point: Point) -> Hashable:
        """Equal for points that give the same replies."""

    def is_silent(self, point: Point) -> bool:
        """Whether every reply is empty, so that there is nothing to generate."""

    def generate(
        self, points: Sequence[Point], only: Sequence[Collection[int]], done: Callable[[], None]
    ) -> SweepResult:
        """only: for each prompt the indices of its points; done: called after every reply. Raises
        `EngineError`."""


class EnsembleGenerator:
    """A point holds one weight per objective of a bundle. Only its direction matters; the zero vector gives empty
    replies, as published."""

    def __init__(
        self, ensemble: Ensemble, objectives: Sequence[str], prompts: Sequence[str], *, max_new_tokens: int = 64
    ) -> None:
        self._ensemble, self._objectives, self._prompts = ensemble, tuple(objectives), list(prompts)
        self._max_new_tokens = max_new_tokens

    def key(self, point: Point) -> Hashable:
        return ray(point)

    def is_silent(self, point: Point) -> bool:
        return not any(point)

    def generate(
        self, points: Sequence[Point], only: Sequence[Collection[int]], done: Callable[[], None]
    ) -> SweepResult:
        return self._ensemble.sweep(
            self._prompts,
            [dict(zip(self._objectives, point, strict=True)) for point in points],
            only=only,
            max_new_tokens=self._max_new_tokens,
            seed=0,
            on_item=lambda item: done(),
        )
