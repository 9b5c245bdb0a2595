"""Stopping rules for an objective: the paper's rule, patience with a noise-aware improvement, or fixed steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.rl.settings import StopSettings


@dataclass(slots=True)
class StopState:
    """The rule's state between validations; `asdict` of it goes into checkpoints."""

    means: list[float] = field(default_factory=list)  # mean score of each validation, the base's first
    reference: list[float] = field(default_factory=list)  # scores per prompt at the last real improvement
    waited: int = 0  # validations since then
    met: str = ""  # why the rule was met; empty if it was not

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StopState:
        # Older checkpoints have no `met`.
        met = str(values.get("met", ""))
        return cls(list(values["means"]), list(values["reference"]), int(values["waited"]), met)


def record(state: StopState, scores: Sequence[float]) -> None:
    """Record a validation, the base's first: a score per validation prompt, always in the same order."""
    state.means.append(statistics.fmean(scores))
    if not state.reference or is_improvement(scores, state.reference):
        state.reference = list(scores)
        state.waited = 0
    else:
        state.waited += 1


def is_improvement(scores: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether the mean rose by more than the standard error of the per-prompt differences, since smaller changes may
    come from the choice of prompts."""
    rises = [new - old for new, old in zip(scores, reference, strict=True)]
    error = statistics.stdev(rises) / math.sqrt(len(rises)) if len(rises) > 1 else 0.0
    return statistics.fmean(rises) > error


def ask(settings: StopSettings, state: StopState) -> None:
    """Evaluate the rule, once after every `record`. The result is kept in `state.met`: once met, always met."""
    if state.met:
        return
    trained = state.means[1:]  # the published code has no validation of the base
    if settings.rule == "paper" and len(trained) >= settings.window:
        last = trained[-settings.window :]
        mean = statistics.fmean(last)
        if mean > 0 and statistics.pstdev(last) / mean < settings.threshold:
            state.met = f"std / mean of the last {settings.window} validation rewards is below {settings.threshold:g}"
    if settings.rule == "patience" and state.waited >= settings.patience:
        state.met = f"no improvement beyond its standard error in {settings.patience} validations"


def reason_to_stop(settings: StopSettings, state: StopState, step: int, *, ends_pass: bool) -> str | None:
    """Why the objective is finished after `step` steps, or None. Under `check: epoch` a rule that was met takes effect
    when the step `ends_pass` over the training prompts."""
    if state.met and (settings.check == "validation" or ends_pass):
        return state.met
    return at_limit(settings, step)


def at_limit(settings: StopSettings, step: int) -> str | None:
    """`max_steps`, which holds under every rule and at every step."""
    return f"max_steps {settings.max_steps} reached" if step >= settings.max_steps else None
