"""The record type that every loader returns and every stage of training reads.

Error messages never contain a row's text, since the data is clinical. They name the file and line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from emorl_core.errors import EmorlError

OnBadRow = Literal["refuse", "skip"]
DIALOGUE = "dialogue"  # the extra column that names a record's dialogue
SHOWN_PROBLEMS = 5  # how many skipped rows a record set lists by file and line


class DataError(EmorlError):
    """Data that cannot be used; the message names the file and the line, never the text."""

    code = "invalid_data"


@dataclass(frozen=True, slots=True)
class Record:
    """A client's prompt, optionally with a reply, its grade, and references. Whitespace in texts is normalised."""

    prompt: str
    response: str | None = None
    level: float | None = None  # graded quality of `response`, higher is better; the scale depends on the loader
    references: tuple[str, ...] = ()  # good replies to the prompt, for evaluation
    where: str = ""  # "file.csv:12", for messages
    extras: Mapping[str, str] = field(default_factory=dict, hash=False)  # topic, behaviour, mechanism, ...

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise DataError(f"{self.where or 'record'}: the prompt is empty", param="prompt")
        if self.response is not None and (not isinstance(self.response, str) or not self.response.strip()):
            raise DataError(f"{self.where or 'record'}: the response is empty; leave it out instead", param="response")
        if self.level is not None and not math.isfinite(self.level):
            raise DataError(f"{self.where or 'record'}: the level is not a finite number", param="level")


@dataclass(frozen=True, slots=True)
class RecordSet:
    """A loader's result: the records, counts of what it found, and the fingerprint of the files read."""

    name: str
    records: tuple[Record, ...]
    rows: int  # rows (or dialogues) read, including malformed ones
    skipped: int = 0  # malformed rows omitted under `on_bad_row: skip`
    problems: tuple[str, ...] = ()  # the first of them: "file:line: why"
    counts: Mapping[str, int] = field(default_factory=dict, hash=False)  # duplicates, conflicts, empty cells, ...
    sha256: str = ""  # of the files read; empty if there is no file

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def prompts(self) -> tuple[str, ...]:
        """The distinct prompts in order of first appearance."""
        return tuple(dict.fromkeys(record.prompt for record in self.records))

    def summary(self) -> str:
        """One line for people: sizes, and everything that was omitted."""
        parts = [f"{self.rows} rows", f"{len(self.records)} records", f"{len(self.prompts())} prompts"]
        parts += [f"{count} {what}" for what, count in self.counts.items()]
        parts.append(f"{self.skipped} malformed rows skipped")
        first = f" (first: {self.problems[0]})" if self.problems else ""
        return f"{self.name}: {', '.join(parts)}{first}"


class Tally:
    """A loader's counts: rows, findings by name, and malformed rows, of which the first is an error or all are skipped,
    depending on the configuration."""

    def __init__(self, on_bad_row: OnBadRow) -> None:
        self.on_bad_row = on_bad_row
        self.rows = 0
        self.skipped = 0
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()

    def malformed(self, where: str, why: str) -> None:
        """Raises `DataError` under `refuse`."""
        if self.on_bad_row == "refuse":
            raise DataError(f"{where}: {why} (on_bad_row: skip leaves such rows out and counts them)")
        self.skipped += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(f"{where}: {why}")

    def close(self, name: str, records: list[Record], sha256: str = "") -> RecordSet:
        """The finished record set. Raises `DataError` if no usable record is left."""
        if not records:
            first = f"; first: {self.problems[0]}" if self.problems else ""
            raise DataError(f"{name}: no usable record in {self.rows} rows, {self.skipped} of them malformed{first}")
        counts = {what: count for what, count in self.counts.items() if count}
        return RecordSet(name, tuple(records), self.rows, self.skipped, tuple(self.problems), counts, sha256)


def clean(text: str) -> str:
    """Normalise whitespace. Other characters are kept; quotes are left to scorers and tokenizers."""
    return " ".join(text.split())


def one_per_prompt(records: list[Record]) -> list[Record]:
    """Distinct prompts without replies, in order of first appearance, each with all references found for it."""
    references: dict[str, dict[str, None]] = {}
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.prompt, record)
        references.setdefault(record.prompt, {}).update(dict.fromkeys(record.references))
    return [
        Record(prompt, references=tuple(references[prompt]), where=record.where, extras=record.extras)
        for prompt, record in first.items()
    ]
