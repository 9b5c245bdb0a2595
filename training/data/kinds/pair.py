"""PAIR (Min et al., EMNLP 2022): a client prompt with two high-quality reflections, one medium, five low.

Published files have a header or none, 9 columns or a 10th for the topic, and empty cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

from training.data.records import DataError, Record, Tally, clean
from training.data.rows import FileSource, check_delimiter, csv_rows, fitted, named

COLUMNS = ("prompt", "hq1", "hq2", "mq1", "lq1", "lq2", "lq3", "lq4", "lq5")
TOPIC = "topic"
LEVELS = {"hq": 2.0, "mq": 1.0, "lq": 0.0}


class PairSource(FileSource):
    """`prompts`: one record per row, the high-quality replies as references. `pairs`: one per high-quality reply.
    `graded`: one per reply, level 2 (high), 1 (medium) or 0 (low)."""

    kind: Literal["pair"] = "pair"
    view: Literal["prompts", "pairs", "graded"] = "pairs"

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        records: list[Record] = []
        for where, row in _rows(text, name, tally):
            prompt = clean(row["prompt"])
            replies = {name: clean(row[name]) for name in COLUMNS[1:]}
            if not prompt or not any(replies.values()):
                tally.malformed(where, "no reply" if prompt else "the prompt is empty")
                continue
            tally.counts["empty cells"] += sum(not reply for reply in replies.values())
            records += self._records(prompt, replies, clean(row.get(TOPIC, "")), where)
        return records

    def _records(self, prompt: str, replies: dict[str, str], topic: str, where: str) -> Iterator[Record]:
        extras = {"topic": topic} if topic else {}
        high = tuple(replies[name] for name in ("hq1", "hq2") if replies[name])
        if self.view == "prompts":
            yield Record(prompt, references=high, where=where, extras=extras)
            return
        for name, reply in replies.items():
            level = LEVELS[name[:2]]
            if reply and (self.view == "graded" or level == LEVELS["hq"]):
                yield Record(prompt, reply, level, high, where, extras | {"column": name})


def _rows(text: str, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, column -> cell), by the header if there is one, else by position."""
    rows = csv_rows(text, name, tally)
    first = next(rows, None)
    if first is None:
        return
    check_delimiter(first[1], first[0])
    columns = _header(first[1], first[0])
    if columns is None:
        columns = [*COLUMNS, TOPIC]
        rows = itertools.chain([first], rows)
    else:
        tally.rows -= 1
    # Some copies lack the topic, in all or in single rows. Any other length means that a comma split a cell.
    lengths = {len(columns), len(columns) - 1} if columns[-1] == TOPIC else {len(columns)}
    for where, row in rows:
        cells = fitted(row, len(columns))
        if len(cells) not in lengths:
            tally.malformed(where, f"{len(cells)} columns; allowed: {' or '.join(map(str, sorted(lengths)))}")
            continue
        yield where, dict(zip(columns, cells, strict=False))


def _header(cells: list[str], where: str) -> list[str] | None:
    """The columns named by the first row, or None if it is data. Raises `DataError` for a partial header."""
    names = named([cell.strip().lower() for cell in cells])
    if not {"hq1", "lq1"} & set(names):
        return None
    for column in COLUMNS:
        if names.count(column) != 1:
            fault = f"no column {column!r}" if column not in names else f"two columns {column!r}"
            raise DataError(f"{where}: {fault}; a PAIR header is {','.join(COLUMNS)}[,{TOPIC}]", param="path")
    return names
