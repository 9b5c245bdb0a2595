"""JSON lines and CSV with named columns, for users' own data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from training.data.records import Record, Tally, clean
from training.data.rows import FileSource, Source, csv_table, jsonl_rows, need_columns, number_of


class Columns(Source):
    """The columns' names. A column that is null is not read."""

    prompt: str = "prompt"
    response: str | None = None  # without it the records are prompts only
    level: str | None = None  # graded quality of the response, a number, higher is better
    references: str | None = None  # good replies: a string or, in JSON, a list of strings
    extras: tuple[str, ...] = ()  # columns passed on as text

    def wanted(self) -> tuple[str, ...]:
        named = (self.prompt, self.response, self.level, self.references, *self.extras)
        return tuple(name for name in named if name is not None)

    def records(self, rows: Iterable[tuple[str, Mapping[str, object]]], tally: Tally) -> list[Record]:
        """Rows by column name -> records. Duplicate rows are kept: they may be intended as weights."""
        made: list[Record] = []
        for where, row in rows:
            record = self._record(row, where)
            if isinstance(record, str):
                tally.malformed(where, record)
            else:
                made.append(record)
        return made

    def _record(self, row: Mapping[str, object], where: str) -> Record | str:
        """The record, or why the row is malformed."""
        texts: list[str | None] = []
        for name in (self.prompt, self.response):
            if name is None:
                texts.append(None)
                continue
            value = row.get(name)
            if not isinstance(value, str) or not clean(value):
                return f"{name!r} is {_why_not_text(row, name)}"
            texts.append(clean(value))
        level = None
        if self.level is not None:
            level = _number(row.get(self.level))
            if level is None:
                return f"{self.level!r} is not a finite number"
        references = _texts(row.get(self.references)) if self.references is not None else ()
        if references is None:
            return f"{self.references!r} is neither a string nor a list of strings"
        extras = {name: clean(str(row[name])) for name in self.extras if row.get(name) is not None}
        return Record(str(texts[0]), texts[1], level, references, where, extras)


class JsonlSource(Columns, FileSource):
    """One JSON object per line."""

    kind: Literal["jsonl"] = "jsonl"

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        return self.records(jsonl_rows(text, name, tally), tally)


class CsvSource(Columns, FileSource):
    """A CSV file with a header."""

    kind: Literal["csv"] = "csv"

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        header, rows = csv_table(text, name, tally)
        need_columns(header, self.wanted(), name)
        return self.records(rows, tally)


def _why_not_text(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if name not in row:
        return f"missing; the row has {', '.join(sorted(map(str, row))[:12])}"
    return "empty" if isinstance(value, str) else f"a {type(value).__name__}; allowed: text"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = number_of(value) if isinstance(value, str) else float(value)
    except OverflowError:
        return None
    return number if number is not None and math.isfinite(number) else None


def _texts(value: object) -> tuple[str, ...] | None:
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(text, str) for text in values):
        return None
    return tuple(clean(text) for text in values if clean(text))
