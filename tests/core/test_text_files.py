"""Text files of people: what a line is, and what is no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from emorl_core.files.reading import Missing, Unreadable
from emorl_core.files.text_files import decode, lines_of, read_lines, read_text

ODD = "form\ffeed, tab\vtab, next\x85line, sep\u2028line, para\u2029graph, file\x1cgroup\x1drecord\x1e"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfone\n", ["one"]),  # saved twice by a program that adds a mark
        (b"one\n\xef\xbb\xbftwo\n", ["one", "two"]),  # two files with marks, joined
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\r\r\ntwo\r\r\n", ["one", "two"]),  # a CR LF whose LF was made a CR LF again
        (b"one\rtwo\r", ["one", "two"]),
        (b"one\rsame\ntwo\n", ["one\rsame", "two"]),
        (b"one\n\n \ntwo\n\n", ["one", "", " ", "two", ""]),
        (f"{ODD}\ntwo\n".encode(), [ODD, "two"]),
        (b"", []),
        (b"\n", [""]),
    ],
)
def test_lines_end_where_a_person_sees_them_end(data: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data)
    assert read_lines(tmp_path / "f") == lines


def test_line_ends_within_a_text_stay() -> None:
    assert decode(b"\xef\xbb\xbfone\r\ntwo\r\n", "f") == "one\r\ntwo\r\n"
    assert lines_of("one\r\ntwo\r\n") == ["one", "two"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("one\ntwo".encode("utf-16"), "it is not UTF-8 but UTF-16; save it as UTF-8"),
        ("one\ntwo".encode("utf-16-le"), "it is not UTF-8 but UTF-16; save it as UTF-8"),
        ("one\ntwo".encode("utf-16-be"), "it is not UTF-8 but UTF-16; save it as UTF-8"),
        ("one\ntwo".encode("utf-32"), "it is not UTF-8 but UTF-16; save it as UTF-8"),
        (b"one\ncaf\xe9\n", "line 2 is not UTF-8 text"),
        (b"one\nhalf \xed\xa0\xbd pair", "line 2 is not UTF-8 text"),
        (b"one\n\ntwo\0", "line 3 holds a NUL character"),
        (b"\0" * 40, "line 1 holds a NUL character"),
    ],
)
def test_what_is_no_text_is_named_by_its_line(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(Unreadable) as caught:
        read_text(path)
    assert caught.value.message == f"{path}: cannot be read: {why}"
    assert caught.value.reason == f"cannot be read: {why}"


def test_a_reader_by_rows_gets_what_is_no_text_in_its_row() -> None:
    assert decode(b"\xef\xbb\xbfone\ncaf\xe9\0", "f", by_rows=True) == "one\ncaf\udce9\0"
    with pytest.raises(Unreadable, match="UTF-16"):
        decode("one".encode("utf-16"), "f", by_rows=True)


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"none: no such file$"):
        read_text(tmp_path / "none")
    with pytest.raises(Unreadable, match=r"cannot be read: Is a directory$"):
        read_text(tmp_path)
