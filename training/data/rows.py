"""Files -> rows with the line they start at. Decoding faults and broken rows become findings, not tracebacks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import field_validator

from training.data.records import DataError, OnBadRow, RecordSet, Tally
from training.spec import Spec

_UNDECODED = re.compile("[\ud800-\udfff]")  # what `surrogateescape` leaves of bytes that are not UTF-8
csv.field_size_limit(2**24)  # the default of 128 KiB is below what a whole transcript in one cell can hold


class Source(Spec):
    """Base of every data source: where rows come from and what to do with a malformed one."""

    on_bad_row: OnBadRow = "refuse"  # skip: leave malformed rows out and count them

    def load(self, base: Path | None = None) -> RecordSet:
        """Read everything. `base`: the folder that relative paths start from. Raises `DataError`."""
        raise NotImplementedError


class FileSource(Source):
    """A source that is one file."""

    path: str  # a file; relative paths start at the recipe's folder

    @field_validator("path")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("name a file")
        return value


def resolve(path: str, base: Path | None) -> Path:
    """Raises `DataError` when there is no such file or folder."""
    found = Path(path).expanduser()
    if base is not None and not found.is_absolute():
        found = base / found
    if not found.exists():
        raise DataError(f"data path {path!r} does not exist", param="path")
    return found


def read_text(path: Path) -> tuple[str, str]:
    """The file's text and the sha256 of its bytes. Bytes that are not UTF-8 survive as lone surrogates, so that only
    the row that holds them is malformed (`fault_in`)."""
    if not path.is_file():
        raise DataError(f"{path.name} is not a file", param="path")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}", param="path") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path.name} is UTF-16; save it as UTF-8", param="path")
    return raw.decode("utf-8-sig", errors="surrogateescape"), hashlib.sha256(raw).hexdigest()


def fault_in(text: str) -> str | None:
    """Why this text cannot be used, or None."""
    if "\x00" in text:
        return "a NUL character"
    if _UNDECODED.search(text):
        return "bytes that are not UTF-8"
    return None


def csv_rows(text: str, name: str, tally: Tally) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) for every non-blank row; a row over several lines is named by its first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        start = reader.line_num + 1
        where = f"{name}:{start}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            tally.rows += 1
            tally.malformed(f"{name}:{start}-{max(start, reader.line_num)}", f"not a CSV row ({error})")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        tally.rows += 1
        fault = next((found for cell in cells if (found := fault_in(cell))), None)
        if fault:
            tally.malformed(where, f"the row holds {fault}")
            continue
        yield where, cells


def csv_table(text: str, name: str, tally: Tally) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """The header's names and (where, column -> cell) for every row of a file with a header.

    Raises `DataError` for an empty file or a header that repeats a name; rows of another length are malformed.
    """
    rows = csv_rows(text, name, tally)
    header = [cell.strip() for cell in next(rows, ("", []))[1]]
    if not header:
        raise DataError(f"{name} is empty", param="path")
    tally.rows -= 1
    twice = sorted({cell for cell in header if header.count(cell) > 1})
    if twice:
        raise DataError(f"{name}:1: the header names {twice[0]!r} twice", param="path")

    def table() -> Iterator[tuple[str, dict[str, str]]]:
        for where, cells in rows:
            if len(cells) != len(header):
                tally.malformed(where, f"{len(cells)} columns; the header has {len(header)}")
                continue
            yield where, dict(zip(header, cells, strict=True))

    return header, table()


def need_columns(header: list[str], wanted: tuple[str, ...], name: str) -> None:
    """Raises `DataError` naming the first missing column and what the file has."""
    for column in wanted:
        if column not in header:
            raise DataError(f"{name}:1: no column {column!r}; it has {', '.join(header)}", param="path")


def jsonl_rows(text: str, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, object]]]:
    """(where, object) for every non-blank line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        tally.rows += 1
        where = f"{name}:{number}"
        if fault := fault_in(line):
            tally.malformed(where, f"the row holds {fault}")
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            tally.malformed(where, f"not JSON ({_json_fault(error)})")
            continue
        except RecursionError:
            tally.malformed(where, "JSON nested too deeply")
            continue
        if not isinstance(value, dict):
            tally.malformed(where, f"a JSON {type(value).__name__}; allowed: an object")
            continue
        yield where, value


def json_list(text: str, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, object]]]:
    """(where, object) for every item of a JSON list. `where` is the line an item starts at.

    Raises `DataError` when the file as a whole is not a JSON list.
    """
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{name} is not a JSON list", param="path")
    position = _skip(text, position + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        where = f"{name}:{line}"
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({_json_fault(error)})", param="path") from None
        tally.rows += 1
        fault = fault_in(text[position:end])
        if fault:
            tally.malformed(where, f"the item holds {fault}")
        elif not isinstance(value, dict):
            tally.malformed(where, f"a JSON {type(value).__name__}; allowed: an object")
        else:
            yield where, value
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise DataError(f"{where}: not JSON (a comma or ']' should follow the item)", param="path")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json_fault(error: BaseException) -> str:
    # JSONDecodeError's own text ends with positions that do not fit a single line of a larger file.
    return str(getattr(error, "msg", error))
