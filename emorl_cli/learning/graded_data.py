"""Parses data arguments for graded and human replies: KIND:PATH, with columns if the kind has no fixed ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from training.data.records import RecordSet

COLUMNS = ("prompt", "response", "level")
KINDS_HELP = "pair, epitome, annomi, esconv, psych8k, jsonl, csv or hub; exchanges:MANNER"
Levels = Literal["needed", "where there are some", "none"]
_UNGRADED = ("psych8k", "exchanges")  # their replies have no levels


def add_column_options(parser: argparse.ArgumentParser, *, level: str | None = "level") -> None:
    """level: the column's name where none is given; None: replies without levels."""
    for column, default in zip(COLUMNS, ("prompt", "response", level), strict=True):
        shown = "none: ungraded replies" if default is None else default
        parser.add_argument(
            f"--{column}-column", default=default, help=f"column of jsonl, csv and hub data (default {shown})"
        )
    parser.add_argument(
        "--on-bad-row",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do with a malformed row (default refuse)",
    )


def load_sets(named: Sequence[str], args: argparse.Namespace, levels: Levels) -> list[RecordSet]:
    """The data sets; without levels the good replies only. Raises `DataError`."""
    from training.data.sources import load_records

    return [load_records(_source(text, args, levels)) for text in named]


def kind_of(text: str) -> str:
    """Raises `DataError` for what is not KIND:PATH."""
    from training.data.records import DataError

    kind, colon, path = text.partition(":")
    if not colon or not path:
        raise DataError(f"data {text!r} is not KIND:PATH; write for example pair:data/pair.csv", param="data")
    return kind


def _source(text: str, args: argparse.Namespace, levels: Levels) -> dict[str, Any]:
    """The data source as a recipe would write it."""
    kind = kind_of(text)
    path = text.partition(":")[2]
    found: dict[str, Any] = {"kind": kind, "on_bad_row": args.on_bad_row}
    if kind in ("jsonl", "csv", "hub"):
        columns = {column: getattr(args, f"{column}_column") for column in COLUMNS}
        if levels == "none":
            columns["level"] = None
        return found | {"id" if kind == "hub" else "path": path} | columns
    if kind == "exchanges":
        return {"kind": kind, "manner": path}
    graded = levels == "needed" or (levels != "none" and kind not in _UNGRADED)
    return found | {"path": path, "view": "graded" if graded else "pairs"}
