"""The topics of the synthetic corpus's clients (`domains.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.data.synthetic.tables import table

Clauses = tuple[tuple[str, str], ...]  # (clause, how a reply can refer to it)


@dataclass(frozen=True, slots=True)
class Domain:
    """One life domain. Templates are filled from `words.SETS`."""

    name: str
    hard: str  # fits "it must be {hard} when ..."
    state: Clauses  # goes on now; joined with "when"
    event: Clauses  # happened; joined with "after"
    good: Clauses  # what went well
    wants: tuple[str, ...]  # fits "I want to {want}"
    advice: tuple[str, ...]  # fits "maybe you could {advice}"
    weight: int = 1  # relative frequency


def _domain(raw: dict[str, Any]) -> Domain:
    return Domain(
        raw["name"],
        raw["hard"],
        state=tuple(raw["state"].items()),
        event=tuple(raw["event"].items()),
        good=tuple(raw["good"].items()),
        wants=tuple(raw["wants"]),
        advice=tuple(raw["advice"]),
        weight=raw.get("weight", 1),
    )


DOMAINS: tuple[Domain, ...] = tuple(map(_domain, table("domains")))
