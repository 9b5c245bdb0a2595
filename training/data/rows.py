"""Reads files into rows with their line numbers. Decoding errors and malformed rows become findings, not tracebacks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import field_validator

from emorl_core.files.documents import repeated
from emorl_core.files.reading import Unreadable, read_bytes
from emorl_core.files.text_files import decode, lines_of
from emorl_core.kinds import Spec
from training.data.records import DataError, OnBadRow, Record, RecordSet, Tally

_HALF_PAIR = re.compile("[\ud800-\udfff]")
# float() also accepts 1_0 and the digits of other scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHOWN = 40  # characters of a column name in a message; without a header it may be a client's text
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
csv.field_size_limit(2**24)  # a whole transcript in one cell can exceed the default of 128 KiB


class Source(Spec):
    """Base of data sources: where rows come from, and how malformed ones are handled."""

    on_bad_row: OnBadRow = "refuse"  # skip: omit malformed rows and count them

    @abstractmethod
    def load(self, base: Path | None = None) -> RecordSet:
        """Read all records. `base`: base of relative paths. Raises `DataError`."""


class FileSource(Source):
    """A source of a single file."""

    path: str  # a file; relative to the recipe's folder

    @field_validator("path")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("name a file")
        return value

    def load(self, base: Path | None = None) -> RecordSet:
        path = resolve(self.path, base)
        text, digest = read_text(path)
        tally = Tally(self.on_bad_row)
        return tally.close(path.name, self.read(text, path.name, tally), digest)

    @abstractmethod
    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        """Parse the text of the file `name`. Raises `DataError`."""


def resolve(path: str, base: Path | None) -> Path:
    """An existing path, relative to `base`. Raises `DataError` if there is no such file or folder."""
    found = Path(path).expanduser()
    if base is not None and not found.is_absolute():
        found = base / found
    if not found.exists():
        raise DataError(f"data path {path!r} does not exist", param="path")
    return found


def read_text(path: Path) -> tuple[str, str]:
    """The file's text and the SHA-256 of its bytes. Bytes that are not UTF-8 become lone surrogates, so that only the
    row that contains them is malformed (`fault_in`)."""
    if not path.is_file():
        raise DataError(f"{path.name} is not a file", param="path")
    try:
        raw = read_bytes(path, regular=False)
        return decode(raw, path.name, by_rows=True), hashlib.sha256(raw).hexdigest()
    except Unreadable as error:
        raise DataError(f"{path.name}: {error.reason}", param="path") from None


def fault_in(texts: Iterable[str], half_pair: str = "bytes that are not UTF-8") -> str | None:
    """Why these texts cannot be used, or None. half_pair: the cause of a lone surrogate, for the message."""
    for text in texts:
        if "\x00" in text:
            return "a NUL character"
        if _HALF_PAIR.search(text):
            return half_pair
    return None


def fault_in_value(value: object) -> str | None:
    """Why a value cannot be used, or None: a fault of any text within it (`fault_in`), or a duplicate key."""
    waiting, texts = [value], []
    while waiting:  # not recursive, since JSON may be nested deeply
        item = waiting.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, dict):
            if isinstance(item, _Repeating):
                return f"the key {item.key[:_SHOWN]!r} twice"
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
    return fault_in(texts, "half a surrogate pair")


def number_of(text: str) -> float | None:
    """Parse a decimal number as written by spreadsheets and programs; None for anything else."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def csv_rows(text: str, name: str, tally: Tally, *, header: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) for every non-blank row; a row over several lines is identified by its first.

    header: the first row has the column names, so a malformed one is always an error.
    """
    first = True

    def malformed(where: str, why: str) -> None:
        if header and first:
            raise DataError(f"{where}: {why}; it should name the columns", param="path")
        tally.malformed(where, why)

    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        start = reader.line_num + 1
        where = f"{name}:{start}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            tally.rows += 1
            until = f"-{reader.line_num}" if reader.line_num > start else ""
            malformed(f"{where}{until}", f"not a CSV row ({error})")
            first = False
            continue
        if not any(cell.strip() for cell in cells) or (start == 1 and cells == ["sep=", ""]):  # Excel's first line
            continue
        tally.rows += 1
        if fault := fault_in(cells):
            malformed(where, f"the row holds {fault}")
        else:
            yield where, cells
        first = False


def csv_table(text: str, name: str, tally: Tally) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """The header's names, and (where, column -> cell) for every row of a file with a header.

    Raises `DataError` for an empty file, a malformed header or one with duplicate names, or another delimiter; rows of
    another length are malformed.
    """
    rows = csv_rows(text, name, tally, header=True)
    where, cells = next(rows, ("", []))
    if not cells:
        raise DataError(f"{name} is empty", param="path")
    tally.rows -= 1
    check_delimiter(cells, where)
    header = named([cell.strip() for cell in cells])
    twice = sorted({cell for cell in header if cell and header.count(cell) > 1})
    if twice:
        raise DataError(f"{where}: the header names {twice[0][:_SHOWN]!r} twice", param="path")

    def table() -> Iterator[tuple[str, dict[str, str]]]:
        for where, row in rows:
            cells = fitted(row, len(header))
            if len(cells) != len(header):
                tally.malformed(where, f"{len(cells)} columns; the header has {len(header)}")
                continue
            yield where, dict(zip(header, cells, strict=True))

    return header, table()


def named(header: list[str]) -> list[str]:
    """The columns up to the last one with a name: spreadsheets append empty ones."""
    return header[: max((place for place, cell in enumerate(header, start=1) if cell), default=0)]


def fitted(cells: list[str], width: int) -> list[str]:
    """The first `width` cells if all others are empty, as in spreadsheets; else all cells, which are too many."""
    return cells if any(cell.strip() for cell in cells[width:]) else cells[:width]


def check_delimiter(cells: list[str], where: str) -> None:
    """Raises `DataError` if the first row seems to have a delimiter other than a comma."""
    found = [shown for sign, shown in _DELIMITERS.items() if sign in cells[0]] if len(cells) == 1 else []
    if found:
        raise DataError(f"{where}: the columns are divided by {found[0]}; save the file with commas", param="path")


def need_columns(header: list[str], wanted: Iterable[str], name: str) -> None:
    """Raises `DataError`, naming the first missing column and those in the file."""
    for column in wanted:
        if column not in header:
            found = ", ".join(cell[:_SHOWN] for cell in header)
            raise DataError(f"{name}:1: no column {column!r}; it has {found}", param="path")


def jsonl_rows(text: str, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, object]]]:
    """(where, object) for every non-blank line."""
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        tally.rows += 1
        where = f"{name}:{number}"
        if fault := fault_in([line]):
            tally.malformed(where, f"the row holds {fault}")
            continue
        try:
            value = _DECODER.decode(line)
        except ValueError as error:
            tally.malformed(where, f"not JSON ({_json_fault(error)})")
            continue
        except RecursionError:
            tally.malformed(where, "JSON nested too deeply")
            continue
        if not isinstance(value, dict):
            tally.malformed(where, f"a JSON {type(value).__name__}; allowed: an object")
            continue
        if fault := fault_in_value(value):
            tally.malformed(where, f"the row holds {fault}")
            continue
        yield where, value


def json_list(text: str, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, object]]]:
    """(where, object) for every item of a JSON list. `where` is the line where an item starts.

    Raises `DataError` if the file is not a JSON list.
    """
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise DataError(f"{name} is not a JSON list", param="path")
    position = _skip(text, position + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        where = f"{name}:{line}"
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({_json_fault(error)})", param="path") from None
        tally.rows += 1
        if fault := fault_in([text[position:end]]) or fault_in_value(value):
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


class _Repeating(dict[str, object]):
    """A JSON object with a duplicate key, so that its value is ambiguous."""

    key: str


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating = _Repeating(found)
    repeating.key = repeated(pairs)
    return repeating


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _json_fault(error: BaseException) -> str:
    # JSONDecodeError's own text ends with positions that are wrong for one line of a larger file.
    return str(getattr(error, "msg", error))
