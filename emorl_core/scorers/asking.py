"""Scoring replies: the data columns passed to scorers, and a cache for repeated questions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from emorl_core.scorers.base import Checked

_DECIMALS = 6  # the batch that a reply is scored in changes only later decimals
K = TypeVar("K", bound=Hashable)


class Asked(Protocol):
    """What a reply answers: a record of the data, or a prompt made from one."""

    @property
    def prompt(self) -> str: ...
    @property
    def references(self) -> Sequence[str]: ...
    @property
    def extras(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Statement:
    """A prompt without data columns."""

    prompt: str
    references: Sequence[str] = ()
    extras: Mapping[str, str] = field(default_factory=dict)


def ask(scorer: Checked, about: Sequence[Asked], replies: Sequence[str]) -> list[float]:
    """One score per reply, in one call of the scorer; reply i answers `about[i]`. Raises `ScorerError`."""
    return scorer(
        prompts=[each.prompt for each in about],
        completions=list(replies),
        references=[list(each.references) for each in about],
        extras=[dict(each.extras) for each in about],
    )


def ask_rounded(scorer: Checked, about: Sequence[Asked], replies: Sequence[str]) -> list[float]:
    """`ask`, rounded so that comparisons between replies do not depend on the batch."""
    return [round(score, _DECIMALS) for score in ask(scorer, about, replies)]


class Panel:
    """Several scorers, each asked about a reply only once."""

    def __init__(self, scorers: Mapping[str, Checked]) -> None:
        self._scorers = dict(scorers)
        self._known: dict[Hashable, tuple[float, ...]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._known

    def __getitem__(self, key: Hashable) -> tuple[float, ...]:
        """One score per scorer, in their order, rounded as in `ask_rounded`."""
        return self._known[key]

    def remember(self, key: Hashable, scores: Sequence[float]) -> None:
        """Store scores from an earlier run."""
        self._known[key] = tuple(scores)

    def score(self, new: Mapping[K, tuple[Asked, str]]) -> None:
        """Score replies (key -> what it answers, its text), all in one batch. Raises `ScorerError`."""
        if not new:
            return
        about, replies = [each for each, _ in new.values()], [text for _, text in new.values()]
        columns = [ask_rounded(scorer, about, replies) for scorer in self._scorers.values()]
        self._known.update(zip(new, zip(*columns, strict=True), strict=True))
