"""What a point of the weight search means in each method: a mix of lanes, or a soup."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import replace

from emorl_core.adapters.adapter import Adapter
from emorl_core.adapters.sums import weighted_sum
from emorl_core.engine.sweep import SweepItem, SweepResult
from emorl_core.types import Combine
from emorl_core.weights import ResolvedWeights, resolve
from training.data.prompts import Prompt
from training.evaluation.methods.answers import Answers
from training.search.strategies.spaces import Point

SOUPS_AT_ONCE = 8  # soups evaluated together, as lanes of one model; bounds the memory of their factors


class _Distinct:
    """Points that are never known in advance to give the same replies."""

    def key(self, point: Point) -> Hashable:
        return point

    def is_silent(self, point: Point) -> bool:  # noqa: ARG002 - one of the generator's questions
        return False


class MixGenerator(_Distinct):
    """The adapters' lanes, mixed with a point's weights."""

    def __init__(
        self, answers: Answers, prompts: Sequence[Prompt], mix: Callable[[Point], ResolvedWeights], combine: Combine
    ) -> None:
        self._answers, self._prompts, self._mix, self._combine = answers, prompts, mix, combine

    def generate(
        self, points: Sequence[Point], only: Sequence[Collection[int]], done: Callable[[], None]
    ) -> SweepResult:
        vectors = [self._mix(point) for point in points]
        return self._answers.sweep(self._prompts, vectors, self._combine, only=only, done=done)


class SoupGenerator(_Distinct):
    """Adapters summed with a point's weights; several soups at once, as lanes of one model."""

    def __init__(self, answers: Answers, prompts: Sequence[Prompt], adapters: Sequence[Adapter]) -> None:
        self._answers, self._prompts, self._adapters = answers, prompts, adapters

    def generate(
        self, points: Sequence[Point], only: Sequence[Collection[int]], done: Callable[[], None]
    ) -> SweepResult:
        items: list[SweepItem] = []
        steps = unshared = 0
        for first in range(0, len(points), SOUPS_AT_ONCE):
            some = range(first, min(first + SOUPS_AT_ONCE, len(points)))
            soups = [self.soup(f"soup-{i}", points[i]) for i in some]
            self._answers.attach(soups)
            vectors = [resolve(self._answers.lanes, {each.name: 1.0}) for each in soups]
            wanted = [[i - first for i in some if i in own] for own in only]
            result = self._answers.sweep(self._prompts, vectors, only=wanted, done=done)
            items += [replace(item, weights_index=item.weights_index + first) for item in result.items]
            steps += result.lane_row_steps
            unshared += result.unshared_lane_row_steps
        items.sort(key=lambda item: (item.prompt_index, item.weights_index))
        return SweepResult(tuple(items), 0, steps, unshared)

    def soup(self, name: str, point: Point) -> Adapter:
        return weighted_sum(name, self._adapters, point)
