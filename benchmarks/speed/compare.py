"""Compares two runs: which figures changed by more than their spread, and whether this engine became slower."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.speed.figures import HIGHER_IS_BETTER, Figure, Results

_MACHINE = ("limit_ms", "gb_per_s")  # figures that depend on the machine, not the code


@dataclass(frozen=True, slots=True)
class Move:
    """One figure in both runs. `worse`: by what fraction of the old median; negative if better."""

    old: Figure
    new: Figure

    @property
    def worse(self) -> float:
        if self.old.metric in HIGHER_IS_BETTER:
            return self.old.median / self.new.median - 1
        return self.new.median / self.old.median - 1

    @property
    def beyond_spread(self) -> bool:
        """Whether the two spreads do not overlap."""
        (old_least, old_most), (new_least, new_most) = spread(self.old), spread(self.new)
        return new_least > old_most or old_least > new_most

    @property
    def ours(self) -> bool:
        return self.old.engine.startswith("emorl") and self.old.metric not in _MACHINE

    def line(self) -> str:
        way = "worse" if self.worse > 0 else "better"
        name = f"{self.old.where}, {self.old.engine}, {self.old.metric.replace('_', ' ')}"
        return f"{name}: {self.old.spread(2)} -> {self.new.spread(2)}, {abs(self.worse):.1%} {way}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`moves`: every figure that both runs have. `threshold`: the fraction from which worse is a regression."""

    moves: tuple[Move, ...]
    missing: tuple[Figure, ...]  # in the old run only
    other_machine: bool
    threshold: float

    @property
    def moved(self) -> list[Move]:
        return [move for move in self.moves if move.beyond_spread]

    @property
    def regressions(self) -> list[Move]:
        return [move for move in self.moved if move.ours and move.worse > self.threshold]

    def lines(self) -> list[str]:
        shown = []
        if self.other_machine:
            shown.append("these runs are of different machines, threads or versions: what moved may be theirs")
        shown.append(f"{len(self.moves)} figures in both runs, {len(self.moved)} moved beyond their spread")
        for title, ours in (("this engine:", True), ("peers and machine:", False)):
            lines = [f"  {move.line()}" for move in self.moved if move.ours == ours]
            shown += [title, *lines] if lines else []
        if self.missing:
            names = dict.fromkeys(figure.where for figure in self.missing)
            shown.append(f"in the old run only: {'; '.join(names)}")
        count = len(self.regressions)
        shown.append(f"{count or 'no'} regression{'' if count == 1 else 's'} beyond {self.threshold:.0%}")
        return shown


def compare(old: Results, new: Results, threshold: float) -> Comparison:
    by_key = {figure.key: figure for figure in new.figures}
    moves = tuple(Move(figure, by_key[figure.key]) for figure in old.figures if figure.key in by_key)
    missing = tuple(figure for figure in old.figures if figure.key not in by_key)
    places = [[run.machine.get(name) for name in ("cpu", "cores", "threads", "gpu")] for run in (old, new)]
    versions = [
        {name: found for name, found in run.machine.get("versions", {}).items() if name != "emorl"}
        for run in (old, new)
    ]
    return Comparison(moves, missing, places[0] != places[1] or versions[0] != versions[1], threshold)


def spread(figure: Figure) -> tuple[float, float]:
    """The interquartile range from four rounds on, so that one disturbed round hides nothing; the full range for
    fewer."""
    if len(figure.values) < 4:
        return figure.least, figure.most
    first, _, third = statistics.quantiles(figure.values, n=4, method="inclusive")
    return first, third
