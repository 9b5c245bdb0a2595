"""PAIR as it is found: with and without a header, 9 or 10 columns, empty cells, and rows that are broken."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.learn.real_data import real
from training.data.kinds.pair import COLUMNS, PairSource
from training.data.records import DataError, Record

ROWS = [
    ["I can't sleep.", "You lie awake.", "Sleep won't come.", "You can't sleep.", "Try tea.", "Why?", "ok", "Go.", "x"],
    ["My boss, he yells.", "a1", "a2", "b1", "c1", "c2", "c3", "c4", "c5"],
]  # fmt: skip


def write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def load(path: Path, view: str = "graded", **settings: str) -> list[Record]:
    return list(PairSource.model_validate({"path": str(path), "view": view, **settings}).load())


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("topic", [True, False])
def test_header_and_topic_column_are_optional(tmp_path: Path, header: bool, topic: bool) -> None:
    rows = [[*row, "sleep"] if topic else row for row in ROWS]
    names = [*COLUMNS, "topic"] if topic else list(COLUMNS)
    path = write(tmp_path / "pair.csv", [names, *rows] if header else rows)
    records = load(path)
    assert [record.level for record in records] == [2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0] * 2
    assert records[8].prompt == "My boss, he yells."
    assert {record.extras.get("topic") for record in records} == ({"sleep"} if topic else {None})
    assert records[0].where == f"pair.csv:{2 if header else 1}"


def test_columns_are_read_by_name_when_the_header_reorders_them(tmp_path: Path) -> None:
    order = [0, 8, 7, 6, 5, 4, 3, 2, 1]
    path = write(tmp_path / "pair.csv", [[row[at] for at in order] for row in [list(COLUMNS), *ROWS]])
    assert load(path, "pairs")[0].response == "You lie awake."


def test_a_row_may_lack_the_topic_that_others_have(tmp_path: Path) -> None:
    path = write(tmp_path / "pair.csv", [[*COLUMNS, "topic"], [*ROWS[0], "sleep"], ROWS[1]])
    assert [record.extras.get("topic") for record in load(path, "prompts")] == ["sleep", None]


def test_empty_cells_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [list(row) for row in ROWS]
    rows[0][2] = rows[0][6] = "  "
    loaded = PairSource(path=str(write(tmp_path / "pair.csv", rows)), view="graded").load()
    assert len(loaded) == 14
    assert loaded.counts == {"empty cells": 2}
    assert loaded.records[0].references == ("You lie awake.",)
    assert all(record.response for record in loaded)


def test_views(tmp_path: Path) -> None:
    path = write(tmp_path / "pair.csv", ROWS)
    prompts = load(path, "prompts")
    assert [(record.prompt, record.response) for record in prompts] == [(row[0], None) for row in ROWS]
    assert prompts[1].references == ("a1", "a2")
    assert [record.response for record in load(path, "pairs")] == ["You lie awake.", "Sleep won't come.", "a1", "a2"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (ROWS[0][:7], "7 columns; allowed: 9 or 10"),
        ([*ROWS[0], "t", "more"], "11 columns; allowed: 9 or 10"),
        (["", *ROWS[0][1:]], "the prompt is empty"),
        ([ROWS[0][0], *[""] * 8], "no reply"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line_and_refused_or_skipped(
    tmp_path: Path, row: list[str], why: str
) -> None:
    path = write(tmp_path / "pair.csv", [ROWS[1], row, ROWS[1]])
    with pytest.raises(DataError, match=rf"^pair\.csv:2: {why}") as caught:
        load(path)
    assert ROWS[0][0] not in caught.value.message, "messages hold no text of the data"
    kept = PairSource(path=str(path), view="graded", on_bad_row="skip").load()
    assert (len(kept), kept.rows, kept.skipped) == (16, 3, 1)
    assert kept.problems == (f"pair.csv:2: {why}",)
    assert "1 malformed rows skipped (first: pair.csv:2" in kept.summary()


def test_a_row_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    rows = [["one\ntwo\nthree", *ROWS[0][1:]], ROWS[0][:5]]
    path = write(tmp_path / "pair.csv", rows)
    with pytest.raises(DataError, match=r"^pair\.csv:4: 5 columns"):
        load(path)
    assert load(path, on_bad_row="skip")[0].prompt == "one two three"


def test_half_a_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pair.csv", [["prompt", "hq1", "hq2", "lq1"], ROWS[0][:4]])
    with pytest.raises(DataError, match=r"no column 'mq1'; a PAIR header is prompt,hq1"):
        load(path, on_bad_row="skip")


def test_bytes_that_are_not_utf8_spoil_only_their_row(tmp_path: Path) -> None:
    path = write(tmp_path / "pair.csv", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"a1", b"a\xe9"))
    with pytest.raises(DataError, match=r"^pair\.csv:2: the row holds bytes that are not UTF-8"):
        load(path)
    records = load(path, on_bad_row="skip")
    assert {record.prompt for record in records} == {ROWS[0][0]}, "and the byte order mark is no part of the prompt"


def test_an_unclosed_quote_is_one_finding_with_its_range_of_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "pair.csv", ROWS)
    path.write_text(path.read_text() + '"never closed,a\nb,c\n')
    with pytest.raises(DataError, match=r"^pair\.csv:3-4: not a CSV row"):
        load(path)
    assert len(load(path, on_bad_row="skip")) == 16


def test_utf16_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pair.csv"
    path.write_text("a,b", encoding="utf-16")
    with pytest.raises(DataError, match=r"UTF-16; save it as UTF-8"):
        load(path)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is not a file"):
        load(tmp_path)


def test_nothing_usable_is_refused_even_when_rows_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "pair.csv", [ROWS[0][:3]])
    with pytest.raises(DataError, match=r"no usable record in 1 rows, 1 of them malformed; first: pair\.csv:1"):
        load(path, on_bad_row="skip")
    path.write_text("")
    with pytest.raises(DataError, match="no usable record in 0 rows"):
        load(path)


def test_the_real_file() -> None:
    path = real("pair/pair.csv")
    source = PairSource(path=str(path), view="graded")
    loaded = source.load()
    assert (loaded.rows, len(loaded), len(loaded.prompts()), loaded.skipped) == (256, 2048, 256, 0)
    assert len(PairSource(path=str(path), view="pairs").load()) == 512


def test_the_real_file_without_header_and_topic_gives_the_same(tmp_path: Path) -> None:
    path = real("pair/pair.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row[:9] for row in csv.reader(file)][1:]
    bare = load(write(tmp_path / "bare.csv", rows))
    full = load(path)
    assert [(r.prompt, r.response, r.level) for r in bare] == [(r.prompt, r.response, r.level) for r in full]
