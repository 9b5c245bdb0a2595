"""Data files as spreadsheets, editors and scripts leave them: what is read as meant, and what is refused by its row."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from training.data.records import DataError, RecordSet
from training.data.sources import load_records

ROWS = [("I cannot keep up at work, and my boss knows", "You feel behind."), ("My sister never listens", "It hurts.")]
TABLE = 'prompt,response\n"I cannot keep up at work, and my boss knows",You feel behind.\nMy sister never listens,It hurts.\n'


def load(path: Path, data: bytes | str, **settings: Any) -> RecordSet:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    kind = {".csv": "csv", ".jsonl": "jsonl"}[path.suffix]
    return load_records({"kind": kind, "path": str(path), "response": "response", **settings})


def read(records: RecordSet) -> list[tuple[str, str | None]]:
    return [(record.prompt, record.response) for record in records]


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        "\ufeff" + TABLE,
        '\ufeff"prompt","response"' + TABLE.removeprefix("prompt,response"),
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        "\n\n" + TABLE + "\n,\n",
        "sep=,\n" + TABLE,
        TABLE.replace("\n", ",,\n"),  # columns that a spreadsheet thinks are in use
        TABLE.replace("\n", ", ,\n"),
        TABLE.replace("response\n", "response,,\n"),
        TABLE.replace("hurts.\n", "hurts.,,\n"),  # in some rows only
        TABLE.replace("behind.", '"You feel behind."').replace(",You feel ", ", "),  # a space before the quote
        "".join(f"{start},{line}\n" for start, line in zip(["", 0, 1], TABLE.splitlines(), strict=True)),
        "".join(f",{start},{line}\n" for start, line in zip(["", 0, 1], TABLE.splitlines(), strict=True)),
    ],
)
def test_a_csv_file_in_any_dress(tmp_path: Path, data: str) -> None:
    assert read(load(tmp_path / "d.csv", data)) == ROWS


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            TABLE.replace('"', "").replace(", and", " and").replace(",", ";"),
            r"1: the columns are divided by semicolons",
        ),
        ("sep=;\n" + TABLE, "1: the columns are divided by semicolons"),
        (TABLE.replace('"', "").replace(", and", " and").replace(",", "\t"), r"1: the columns are divided by tabs"),
        (TABLE.encode("utf-16"), " cannot be read: it is not UTF-8 but UTF-16; save it as UTF-8"),
        (TABLE.encode("utf-16-le"), " cannot be read: it is not UTF-8 but UTF-16; save it as UTF-8"),
        (b"prompt,response,caf\xe9\n1,2,3\n", "1: the row holds bytes that are not UTF-8; it should name the columns"),
        (b'prompt,"response" x\n1,2\n', r"1: not a CSV row \(.*\); it should name the columns"),
        (b"prompt,respo\0nse\n1,2\n", "1: the row holds a NUL character; it should name the columns"),
        ("prompt,prompt,response\na,b,c\n", "1: the header names 'prompt' twice"),
        ("Prompt,Response\na,b\n", "1: no column 'prompt'; it has Prompt, Response"),
    ],
)
def test_a_csv_file_without_a_readable_header_is_refused_whatever_the_policy(
    tmp_path: Path, data: bytes | str, why: str
) -> None:
    for policy in ("refuse", "skip"):
        with pytest.raises(DataError, match=rf"^d\.csv:{why}") as caught:
            load(tmp_path / "d.csv", data, on_bad_row=policy)
        assert "on_bad_row" not in caught.value.message


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"a,b,c", "3 columns; the header has 2"),
        (b"a,b,,c", "4 columns; the header has 2"),
        (b"a", "1 columns; the header has 2"),
        (b'"I said \\"no\\" to him",b', "not a CSV row"),
        (b'"I said "no" to him",b', "not a CSV row"),
        (b"I can\x92t,b", "the row holds bytes that are not UTF-8"),
        (b"half \xed\xa0\xbd pair,b", "the row holds bytes that are not UTF-8"),
        (b"a\0,b", "the row holds a NUL character"),
    ],
)
def test_a_malformed_csv_row_is_refused_by_its_line_or_skipped(tmp_path: Path, row: bytes, why: str) -> None:
    data = TABLE.encode() + row + b"\n"
    with pytest.raises(DataError, match=rf"^d\.csv:4: {why}"):
        load(tmp_path / "d.csv", data)
    kept = load(tmp_path / "d.csv", data, on_bad_row="skip")
    assert (read(kept), kept.skipped) == (ROWS, 1)
    header, *rows = TABLE.encode().splitlines(keepends=True)
    kept = load(tmp_path / "d.csv", b"".join([header, row, b"\n", *rows]), on_bad_row="skip")  # right after the header
    assert (read(kept), kept.skipped) == (ROWS, 1)


def test_a_file_without_a_header_is_not_quoted_at_length(tmp_path: Path) -> None:
    said = "I cannot sleep since my mother went away in spring and nobody at home speaks of it"
    for data in (f"{said},ok\na,b\n", f"{said},{said}\na,b\n"):
        with pytest.raises(DataError) as caught:
            load(tmp_path / "d.csv", data)
        assert "went away in spring" not in caught.value.message


PAIR = ["prompt", "hq1", "hq2", "mq1", "lq1", "lq2", "lq3", "lq4", "lq5"]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("behind", ["", ",", ",,,"])
def test_pair_takes_empty_columns_behind_its_own(tmp_path: Path, header: bool, behind: str) -> None:
    rows = [*([PAIR] if header else []), [f"cell {name}" for name in PAIR]]
    path = tmp_path / "pair.csv"
    path.write_text("".join(",".join(row) + behind + "\n" for row in rows))
    assert [record.response for record in load_records({"kind": "pair", "path": str(path)})] == ["cell hq1", "cell hq2"]


def test_pair_divided_by_something_else_is_told_so(tmp_path: Path) -> None:
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        (tmp_path / "pair.csv").write_text(f"{sign.join(PAIR)}\n{sign.join(PAIR)}\n")
        for policy in ("refuse", "skip"):
            with pytest.raises(DataError, match=rf"^pair\.csv:1: the columns are divided by {name}"):
                load_records({"kind": "pair", "path": str(tmp_path / "pair.csv"), "on_bad_row": policy})


def test_epitome_levels_as_a_table_program_writes_them(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("seeker_post,response_post,level,,\na,b,1.0,,\nc,d,2,,\n")
    loaded = load_records({"kind": "epitome", "path": str(tmp_path / "e.csv")})
    assert [record.level for record in loaded] == [1.0, 2.0]


# --- JSON -------------------------------------------------------------------------------------------------------------

LINES = ['{"prompt": "one", "response": "1"}', '{"prompt": "two \\ud83d\\ude00", "response": "2"}']


@pytest.mark.parametrize(
    "data",
    [
        "\n".join(LINES),
        "\ufeff" + "\r\n".join(LINES) + "\r\n",
        "\r".join(LINES),
        "\n\ufeff".join(LINES),
        "\n \n".join(LINES) + "\n",
    ],
)
def test_json_lines_in_any_dress(tmp_path: Path, data: str) -> None:
    assert read(load(tmp_path / "d.jsonl", data)) == [("one", "1"), ("two 😀", "2")]


def test_a_line_is_a_line_also_with_odd_characters_in_it(tmp_path: Path) -> None:
    data = '{"prompt": "low\u2028and\x85tired", "response": "1"}\n'
    assert read(load(tmp_path / "d.jsonl", data)) == [("low and tired", "1")]


# Not text, in every place of a row: each must be found before a tokenizer stumbles over it.
NOT_TEXT = [
    (r"a \ud83d b", "half a surrogate pair"),
    (r"a \ude00\ud83d b", "half a surrogate pair"),
    (r"a \u0000 b", "a NUL character"),
]


@pytest.mark.parametrize(("text", "why"), NOT_TEXT)
@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": "TEXT", "response": "b"}',
        '{"prompt": "a", "response": "TEXT"}',
        '{"prompt": "a", "response": "b", "references": ["c", "TEXT"]}',
        '{"prompt": "a", "response": "b", "other": {"deep": [["TEXT"]]}}',
        '{"prompt": "a", "response": "b", "TEXT": 1}',
    ],
)
def test_escapes_that_are_no_text_spoil_their_row(tmp_path: Path, row: str, text: str, why: str) -> None:
    data = "\n".join([LINES[0], row.replace("TEXT", text)])
    with pytest.raises(DataError, match=rf"^d\.jsonl:2: the row holds {why} \(on_bad_row") as caught:
        load(tmp_path / "d.jsonl", data, references="references")
    assert caught.value.message.isprintable()
    kept = load(tmp_path / "d.jsonl", data, references="references", on_bad_row="skip")
    assert (read(kept), kept.skipped) == ([("one", "1")], 1)


@pytest.mark.parametrize(("text", "why"), NOT_TEXT)
@pytest.mark.parametrize("kind", ["psych8k", "esconv", "esconv lines"])
def test_escapes_that_are_no_text_spoil_their_item(tmp_path: Path, kind: str, text: str, why: str) -> None:
    if kind == "psych8k":
        good = {"instruction": "i", "input": "what I say", "output": "what you say"}
        bad = good | {"output": "TEXT"}
    else:
        turns = [
            {"speaker": "seeker", "content": "I feel so alone here"},
            {
                "speaker": "supporter",
                "content": "You feel all alone",
                "annotation": {"strategy": "Reflection of feelings"},
            },
        ]
        good = {"situation": "alone", "dialog": turns}
        bad = good | {"dialog": [{"speaker": "seeker", "content": "TEXT"}, *turns]}
    written = [json.dumps(item).replace("TEXT", text) for item in (good, bad)]
    path = tmp_path / "d.json"
    path.write_text("\n".join(written) if kind == "esconv lines" else "[" + ",\n".join(written) + "]")
    spec = {"kind": kind.split()[0], "path": str(path)}
    with pytest.raises(DataError, match=rf"^d\.json:2: the (row|item) holds {why}"):
        load_records(spec)
    kept = load_records(spec | {"on_bad_row": "skip"})
    assert (len(kept), kept.skipped) == (1, 1)


@pytest.mark.slow  # importing the library takes most of it
def test_escapes_that_are_no_text_in_a_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(LINES[0] + '\n{"prompt": "a \\u0000 b", "response": "c"}\n')
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train.jsonl").write_text(LINES[0] + '\n{"prompt": "a \\ud83d b", "response": "c"}\n')
    spec = {"kind": "hub", "id": "set", "response": "response"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        with pytest.raises(DataError, match=r"^set\[1\]: the row holds a NUL character"):
            load_records(spec, base=tmp_path)
        assert read(load_records(spec | {"on_bad_row": "skip"}, base=tmp_path)) == [("one", "1")]
        # The library itself refuses the file.
        with pytest.raises(DataError, match=r"^data set 'half' \(train\) cannot be loaded: .* in row 1$"):
            load_records(spec | {"id": "half"}, base=tmp_path)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"prompt": "a", "prompt": "b", "response": "c"}', "the row holds the key 'prompt' twice"),
        ('{"prompt": "a", "response": "c", "x": [{"y": 1, "y": 1}]}', "the row holds the key 'y' twice"),
        (LINES[0] * 2, "not JSON"),
        (LINES[0] + ",", "not JSON"),
        ('{"prompt": "a", "response": "c", "x": ' + "[" * 50_000 + "]" * 50_000 + "}", "JSON nested too deeply"),
    ],
)
def test_a_malformed_json_line_is_refused_by_its_line_or_skipped(tmp_path: Path, row: str, why: str) -> None:
    with pytest.raises(DataError, match=rf"^d\.jsonl:2: {why}"):
        load(tmp_path / "d.jsonl", f"{LINES[0]}\n{row}\n")
    assert read(load(tmp_path / "d.jsonl", f"{LINES[0]}\n{row}\n", on_bad_row="skip")) == [("one", "1")]


@pytest.mark.parametrize(
    "value", ["true", "NaN", "1e999", "9" * 400, '"2,5"', '"1_0"', '" ٣ "', '"nan"', '"0x1"', "null"]
)
def test_a_level_is_a_decimal_number(tmp_path: Path, value: str) -> None:
    good = [f'{{"prompt": "a", "level": {level}}}' for level in ("1", '"-2.50"', '" 3. "', "4e-1")]
    data = "\n".join([*good, f'{{"prompt": "b", "level": {value}}}'])
    spec = {"level": "level", "response": None}
    with pytest.raises(DataError, match=r"^d\.jsonl:5: 'level' is not a finite number"):
        load(tmp_path / "d.jsonl", data, **spec)
    kept = load(tmp_path / "d.jsonl", data, on_bad_row="skip", **spec)
    assert [record.level for record in kept] == [1.0, -2.5, 3.0, 0.4]
