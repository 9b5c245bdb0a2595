"""An exam's results as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def shown(row: Mapping[str, Any]) -> str:
    """A row of `Exam.as_dict` in the form `0.94 [0.88, 0.99]`."""
    if row["value"] is None:
        return "none: all are equal"
    bounds = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{bounds}"


def cells(exam: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str, str]]:
    """The lines of the table: row, data, measure, figure, the longer reply's, count (clusters)."""
    for row in exam["rows"]:
        longer = "" if row["by_length"] is None or row["measure"] == "Spearman" else f"{row['by_length']:.2f}"
        count = f"{row['count']} ({row['clusters']})"
        yield row["row"], row["data"], row["measure"], shown(row), longer, count


HEAD = ("row", "data", "measure", "figure [95 %]", "longer reply", "pairs or replies (clusters)")


def text_lines(exam: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal, with the constants' texts if the exam includes them."""
    lines = [HEAD, *cells(exam)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [*table, *(_of_constant(each) for each in exam["constants"]), *left_out_lines(exam)]


def markdown_lines(exam: Mapping[str, Any]) -> list[str]:
    """A Markdown table and its notes, without any text from the data."""
    lines: Sequence[Sequence[str]] = [HEAD, ["---"] * len(HEAD), *cells(exam)]
    notes = [*(_of_constant({**each, "text": None}) for each in exam["constants"]), *left_out_lines(exam)]
    return [*("| " + " | ".join(line) + " |" for line in lines), "", *(f"- {note}" for note in notes)]


def left_out_lines(exam: Mapping[str, Any]) -> list[str]:
    return [f"left out: {row} (needs {why})" for row, why in exam["left_out"].items()]


def _of_constant(each: Mapping[str, Any]) -> str:
    text = f": {each['text']}" if each.get("text") else ""
    return f"{each['data']}: best constant {each['mean']:.3f}, human replies {each['human']:.3f}{text}"
