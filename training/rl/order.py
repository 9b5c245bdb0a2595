"""Which prompts a step takes: shuffled passes over the training prompts, one after the other without a gap."""

from __future__ import annotations

from random import Random

from training.seeds import derive


class Order:
    """A pure function of (seed, step), so that a resumed run goes on with the same prompts."""

    def __init__(self, size: int, per_step: int, seed: int) -> None:
        """size: training prompts; per_step: prompts of a step."""
        self.size, self.per_step, self.seed = size, per_step, seed
        self._epoch = -1
        self._shuffled: list[int] = []

    def step(self, number: int) -> list[int]:
        """Indices of the prompts of step `number`, counted from 0."""
        first = number * self.per_step
        return [self._at(position) for position in range(first, first + self.per_step)]

    def ends_epoch(self, number: int) -> bool:
        """Whether step `number` uses the last prompt of a pass."""
        return (number + 1) * self.per_step // self.size > number * self.per_step // self.size

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._shuffled = list(range(self.size))
            Random(derive(self.seed, "order", epoch)).shuffle(self._shuffled)
            self._epoch = epoch
        return self._shuffled[place]
