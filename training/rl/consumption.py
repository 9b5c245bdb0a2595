"""What an objective has used: the axis that training methods are compared on (method.md section 6)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Consumption:
    """Counts of one objective. "Training data points" in the paper's sense are `prompts`."""

    prompts: int = 0  # taken for training, repeats counted
    samples: int = 0  # replies sampled for training
    tokens: int = 0  # tokens of those replies
    validation_samples: int = 0  # greedy replies
    validation_tokens: int = 0
    seconds: float = 0.0  # of the steps and validations it took part in, which it shared with the other objectives
    own_seconds: float = 0.0  # the same, divided by the number of objectives that took part

    def spend(self, seconds: float, sharing: int) -> None:
        self.seconds += seconds
        self.own_seconds += seconds / sharing

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
