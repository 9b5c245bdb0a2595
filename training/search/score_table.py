"""Scores of one weight vector by prompt and scorer, and the goals that reduce them to one number."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emorl_core.kinds import nearest
from training.search.strategies.grid import SearchError

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """`scores` [prompts, scorers], each in [0, 1]; `names` are the scorers'. A user's goal function is called with
    it."""

    names: tuple[str, ...]
    scores: Array

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape[1] != len(self.names):
            raise SearchError(f"scores of shape {self.scores.shape} for {len(self.names)} scorers")

    @property
    def means(self) -> dict[str, float]:
        """Scorer -> mean over the prompts."""
        return dict(zip(self.names, self.scores.mean(axis=0).tolist(), strict=True))

    @property
    def prompts(self) -> int:
        return int(self.scores.shape[0])

    def column(self, name: str) -> Array:
        """One scorer's scores, [prompts]."""
        return self.scores[:, self.names.index(name)]

    def taken(self, prompts: Sequence[int] | Array) -> ScoreTable:
        """The table of these prompts, with repeats allowed, for bootstrap resamples."""
        return ScoreTable(self.names, self.scores[np.asarray(prompts, dtype=np.int64)])


@dataclass(frozen=True, slots=True)
class Goal:
    """The quantity to maximise. `text` is the user's specification."""

    text: str
    of: Callable[[ScoreTable], float]

    def __call__(self, table: ScoreTable) -> float:
        """Raises `SearchError` if a user's goal function returns anything but a finite number."""
        value = self.of(table)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not math.isfinite(value):
            shown = f"{value:g}" if isinstance(value, (float, np.floating)) else f"a {type(value).__name__}"
            raise SearchError(f"goal {self.text!r} returned {shown}; allowed: finite numbers", param="goal")
        return float(value)


def parse_goal(text: str, names: Sequence[str]) -> Goal:
    """`mean`, `worst`, `weighted:reflection=2,empathy=1` or a dotted path `package.module:function`.

    `mean`: mean over scorers and prompts. `worst`: the lowest of the scorers' means. `weighted`: weighted mean of the
    scorers' means. A function is called with a `ScoreTable` and returns a number; it is code, so name only what you
    trust.

    Raises `SearchError`.
    """
    if text == "mean":
        return Goal(text, lambda table: float(table.scores.mean()))
    if text == "worst":
        return Goal(text, lambda table: float(table.scores.mean(axis=0).min()))
    if text.startswith("weighted:"):
        return _weighted(text, names)
    if ":" in text or "." in text:
        return Goal(text, _function(text))
    raise SearchError(
        f"goal is {text[:60]!r}; allowed: mean, worst, weighted:NAME=NUMBER,… or package.module:function", param="goal"
    )


def _weighted(text: str, names: Sequence[str]) -> Goal:
    weights: dict[str, float] = {}
    for part in text.removeprefix("weighted:").split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in names:
            raise SearchError(
                f"goal: {name[:40]!r} is no scorer{nearest(name, names)}; scorers: {', '.join(names)}", param="goal"
            )
        try:
            weights[name] = float(number)
        except ValueError:
            raise SearchError(f"goal: {part[:40]!r} is not NAME=NUMBER", param="goal") from None
    return Goal(text, _mean_of(weights))


def _mean_of(weights: Mapping[str, float]) -> Callable[[ScoreTable], float]:
    total = math.fsum(weights.values())
    if not math.isfinite(total) or min(weights.values()) < 0 or total == 0:
        raise SearchError("goal: weights must be finite, from 0, and not all 0", param="goal")

    def weighted(table: ScoreTable) -> float:
        means = table.means
        return math.fsum(weight * means[name] for name, weight in weights.items()) / total

    return weighted


def _function(path: str) -> Callable[[ScoreTable], float]:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - importing runs anybody's code
        raise SearchError(f"goal {path!r}: cannot import {module_name}: {type(error).__name__}", param="goal") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise SearchError(f"goal {path!r}: module {module_name} has no function {name!r}", param="goal")
    checked: Callable[[ScoreTable], float] = found
    return checked
