"""When an objective is finished: the paper's rule, patience on a noise-aware improvement, or fixed steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.rl.settings import StopSettings


@dataclass(slots=True)
class StopState:
    """What the rule remembers between validations. `asdict` of it goes into checkpoints."""

    means: list[float] = field(default_factory=list)  # mean validation score, one per validation
    reference: list[float] = field(default_factory=list)  # scores per prompt at the last real improvement
    waited: int = 0  # validations since then

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StopState:
        return cls(list(values["means"]), list(values["reference"]), int(values["waited"]))


def record(state: StopState, scores: Sequence[float]) -> None:
    """Take in one validation: a score per validation prompt, always in the same order."""
    state.means.append(statistics.fmean(scores))
    if not state.reference or is_improvement(scores, state.reference):
        state.reference = list(scores)
        state.waited = 0
    else:
        state.waited += 1


def is_improvement(scores: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether the mean rose by more than the standard error of the rise, prompt by prompt: what the choice of prompts
    alone moves the mean by is no improvement."""
    rises = [new - old for new, old in zip(scores, reference, strict=True)]
    error = statistics.stdev(rises) / math.sqrt(len(rises)) if len(rises) > 1 else 0.0
    return statistics.fmean(rises) > error


def reason_to_stop(settings: StopSettings, state: StopState, step: int) -> str | None:
    """Why the objective is finished after `step` steps, or None. Ask after `record`, when the rule is to be checked."""
    if settings.rule == "paper" and len(state.means) >= settings.window:
        last = state.means[-settings.window :]
        mean = statistics.fmean(last)
        if mean > 0 and statistics.pstdev(last) / mean < settings.threshold:
            return f"std / mean of the last {settings.window} validation rewards is below {settings.threshold:g}"
    if settings.rule == "patience" and state.waited >= settings.patience:
        return f"no improvement beyond its standard error in {settings.patience} validations"
    return at_limit(settings, step)


def at_limit(settings: StopSettings, step: int) -> str | None:
    """`max_steps`, which holds under every rule and at every step."""
    return f"max_steps {settings.max_steps} reached" if step >= settings.max_steps else None
