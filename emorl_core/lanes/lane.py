"""A lane: a sequence as one objective sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Coefficients = tuple[float, ...]  # one number per stacked adapter


@dataclass(frozen=True, slots=True)
class Lane:
    """A point in adapter space and the prompt that is read there.

    `coefficients` are one-hot for an objective, all 0 for the base, any vector for a mix in weight space. Equal lanes
    compute the same, so a lane is a cache key.
    """

    coefficients: Coefficients
    prompt_ids: tuple[int, ...]
    _hash: int = field(init=False, repr=False, compare=False)  # a prompt may be long, and is looked up at every step

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.coefficients, self.prompt_ids)))

    def __hash__(self) -> int:
        return self._hash


def named_points(lanes: Sequence[str], adapters: Sequence[str]) -> tuple[Coefficients, ...]:
    """The named lanes as points over the stacked adapters: those without an adapter are the base."""
    return tuple(tuple(float(adapter == lane) for adapter in adapters) for lane in lanes)


def lane_points(adapters: int) -> tuple[Coefficients, ...]:
    """The named lanes as points: `base`, then each adapter by itself."""
    base = (0.0,) * adapters
    return (base, *((*base[:i], 1.0, *base[i + 1 :]) for i in range(adapters)))
