"""A measured figure with its spread, and the result file of a run: one JSON object on one line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emorl_core.errors import InvalidRequest

FORMAT = "emorl-bench/1"
HIGHER_IS_BETTER = ("tokens_per_s", "gb_per_s")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured once per round. `values` has one number per round; the other fields are its key."""

    case: str
    engine: str  # with its number format if that is not the run's: `ctranslate2 int8`
    metric: str  # ends in its unit
    values: tuple[float, ...]
    shape: str = ""
    dtype: str = ""
    device: str = "cpu"
    objectives: int = 0  # 0: not applicable, also in the following fields
    requests: int = 0
    source: int = 0
    new: int = 0
    position: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def key(self) -> tuple[Any, ...]:
        """The key, equal in two runs that measured the same quantity."""
        return tuple(value for name, value in asdict(self).items() if name != "values")

    @property
    def where(self) -> str:
        """The key as text, without engine and metric."""
        parts = [self.case, self.shape, self.dtype, self.device if self.device != "cpu" else ""]
        parts += [
            f"N={self.objectives}" if self.objectives else "",
            f"{self.requests} requests" if self.requests else "",
        ]
        parts += [f"{self.source}+{self.new}" if self.source else "", f"at {self.position}" if self.position else ""]
        return " ".join(part for part in parts if part)

    def spread(self, digits: int = 1) -> str:
        """`median (minimum-maximum)`."""
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f}-{self.most:,.{digits}f})"


@dataclass(slots=True)
class Results:
    """All figures of a run, with its machine. `facts`: the engines' own descriptions of how they ran."""

    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was not measured, and why

    def find(self, case: str, engine: str, metric: str, **sizes: Any) -> Figure | None:
        """The first figure with these sizes; sizes that are not named may have any value."""
        for figure in self.figures:
            if (figure.case, figure.engine, figure.metric) == (case, engine, metric) and all(
                getattr(figure, name) == value for name, value in sizes.items()
            ):
                return figure
        return None

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def document(self, targets: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        shown = [
            {**asdict(figure), "median": figure.median, "min": figure.least, "max": figure.most}
            for figure in self.figures
        ]
        return {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "figures": shown,
            "facts": self.facts,
            "notes": self.notes,
            "targets": list(targets),
        }


def read_results(paths: Iterable[Path]) -> Results:
    """Merge one or several files from one machine, such as the parts of a long run.

    Raises:
        InvalidRequest: a file that cannot be read or has another format, or was measured elsewhere than the first.
    """
    together = Results()
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise InvalidRequest(f"{path}: is not JSON; allowed: a file that emorl bench --json wrote") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InvalidRequest(f"{path}: has no format {FORMAT}; allowed: a file that emorl bench --json wrote")
        try:
            names = Figure.__dataclass_fields__
            figures = [
                Figure(**{k: tuple(v) if k == "values" else v for k, v in each.items() if k in names})
                for each in document["figures"]
            ]
            machine, settings, facts, notes = (document[key] for key in ("machine", "settings", "facts", "notes"))
        except (KeyError, TypeError) as error:
            raise InvalidRequest(f"{path}: does not hold what {FORMAT} holds: {error}") from None
        if together.machine and place(together.machine) != place(machine):
            raise InvalidRequest(f"{path}: was measured on another machine or with other threads than the first file")
        together.machine = together.machine or machine
        together.settings = together.settings or settings
        measured = {figure.key for figure in together.figures}
        together.figures += [figure for figure in figures if figure.key not in measured]
        together.facts |= facts
        together.notes += [note for note in notes if note not in together.notes]
    return together


def write_results(path: Path, results: Results, targets: Sequence[Mapping[str, Any]]) -> None:
    """Write one line of JSON atomically, so that a reader never sees a partial file."""
    from emorl_core.files.writing import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results.document(targets), allow_nan=False) + "\n", encoding="utf-8")


def place(machine: Mapping[str, Any]) -> tuple[Any, ...]:
    """The facts that must be equal for figures to belong to one run."""
    return tuple(machine.get(name) for name in ("cpu", "threads", "gpu"))
