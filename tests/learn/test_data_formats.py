"""Psych8k, EPITOME, JSON lines, CSV, `datasets`, and how sources are named."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.learn.real_data import real
from training.data.kinds.epitome import MECHANISMS, EpitomeSource
from training.data.kinds.psych8k import Psych8kSource
from training.data.records import DataError, Record
from training.data.sources import SOURCES, load_records, parse_source

ITEM = {"instruction": "Act as a counselor.", "input": "I feel  empty.", "output": "You miss something."}


def psych8k(path: Path, items: Any, **settings: Any) -> Psych8kSource:
    path.write_text(items if isinstance(items, str) else json.dumps(items, indent=2), encoding="utf-8")
    return Psych8kSource(path=str(path), **settings)


def test_psych8k_takes_input_as_prompt_and_output_as_reply(tmp_path: Path) -> None:
    other = ITEM | {"output": "Emptiness weighs on you."}
    loaded = psych8k(tmp_path / "p.json", [ITEM, ITEM, other]).load()
    assert [(record.prompt, record.response) for record in loaded] == [
        ("I feel empty.", "You miss something."),
        ("I feel empty.", "Emptiness weighs on you."),
    ]
    assert (loaded.rows, loaded.counts) == (3, {"duplicates": 1})
    [prompt] = psych8k(tmp_path / "p.json", [ITEM, other], view="prompts").load()
    assert (prompt.response, prompt.references) == (None, ("You miss something.", "Emptiness weighs on you."))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("text", "a JSON str; allowed: an object"),
        ({"instruction": "", "input": "x"}, "'output' is missing"),
        (ITEM | {"input": 3}, "'input' is not a string"),
        (ITEM | {"output": " \n"}, "'output' is empty"),
    ],
)
def test_malformed_psych8k_items_are_named_by_their_line(tmp_path: Path, item: Any, why: str) -> None:
    with pytest.raises(DataError, match=rf"^p\.json:7: {why}"):
        psych8k(tmp_path / "p.json", [ITEM, item]).load()
    assert psych8k(tmp_path / "p.json", [ITEM, item], on_bad_row="skip").load().skipped == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"input": "x"}', "not a JSON list"),
        ("", "not a JSON list"),
        ('[{"input": "x"', r"p\.json:1: not JSON"),
        ('[\n{"input": "x"} {}]', r"p\.json:2: not JSON \(a comma"),
        ("[" + "[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_json_list_is_refused_whatever_the_policy(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        psych8k(tmp_path / "p.json", text, on_bad_row="skip").load()


EPITOME_HEADER = "sp_id,rp_id,seeker_post,response_post,level,rationales\n"


def epitome(path: Path, rows: str, **settings: Any) -> EpitomeSource:
    path.write_text(EPITOME_HEADER + rows, encoding="utf-8")
    return EpitomeSource(path=str(path), **settings)


def test_epitome_repetitions_count_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "explorations-reddit.csv"
    rows = "1,1,I am lost,Where are you?,2,x\n1,1,I am lost,Where are you?,2,\n"
    rows += "2,2,No one calls,ok,0,\n2,2,No one calls,ok,1,\n3,3,Help me,sure,0,\n"
    loaded = epitome(path, rows).load()
    assert [(record.prompt, record.level) for record in loaded] == [("I am lost", 2.0), ("Help me", 0.0)]
    assert loaded.counts == {"repeated rows": 2, "pairs with conflicting levels left out": 1}
    assert loaded.records[0].extras == {"mechanism": "explorations"}
    assert [record.prompt for record in epitome(path, rows, view="pairs").load()] == ["I am lost"]


@pytest.mark.parametrize("row", ["1,1,a,b,3,\n", "1,1,a,b,,\n", "1,1, ,b,0,\n", "1,1,a,b\n"])
def test_malformed_epitome_rows(tmp_path: Path, row: str) -> None:
    good = "1,1,a,b,1,\n"
    with pytest.raises(DataError, match=r"^e\.csv:3: "):
        epitome(tmp_path / "e.csv", good + row).load()
    assert epitome(tmp_path / "e.csv", good + row, on_bad_row="skip").load().skipped == 1


@pytest.mark.parametrize(("mechanism", "pairs"), [*zip(MECHANISMS, (3013, 3018, 3013), strict=True)])
def test_the_real_epitome(mechanism: str, pairs: int) -> None:
    loaded = EpitomeSource(path=str(real(f"epitome/{mechanism}-reddit.csv"))).load()
    assert (loaded.rows, loaded.counts["repeated rows"], len(loaded), loaded.skipped) == (3084, 61, pairs, 0)


LINES = [
    {"q": "I am stuck", "a": "You see no way out", "grade": 2, "good": ["one", "two"], "topic": "work"},
    {"q": "I am stuck", "a": "Try harder", "grade": "0.5", "good": [], "topic": "work"},
]
NAMES = {"prompt": "q", "response": "a", "level": "grade"}


def jsonl(path: Path, rows: list[Any]) -> dict[str, Any]:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path)}


def test_json_lines_with_named_columns(tmp_path: Path) -> None:
    spec = jsonl(tmp_path / "d.jsonl", [LINES[0], "", LINES[1]])
    loaded = load_records(spec | NAMES | {"references": "good", "extras": ["topic"]})
    assert [record.level for record in loaded] == [2.0, 0.5]
    assert loaded.records[0].references == ("one", "two")
    assert loaded.records[1].where == "d.jsonl:3"
    assert loaded.records[0].extras == {"topic": "work"}
    [first, _] = load_records(spec | {"prompt": "q"})
    assert first == Record("I am stuck", where="d.jsonl:1")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"q": ', r"not JSON"),
        ('{"q": "x", "a": "y", "grade": NaN}', "'grade' is not a finite number"),
        ({"q": "x", "a": "y"}, "'grade' is not a finite number"),
        ({"q": "x", "a": "y", "grade": True}, "'grade' is not a finite number"),
        ({"a": "y", "grade": 1}, "'q' is missing; the row has a, grade"),
        ({"q": "x", "a": None, "grade": 1}, "'a' is a NoneType; allowed: text"),
        ({"q": "", "a": "y", "grade": 1}, "'q' is empty"),
        ({"q": "x", "a": "y", "grade": 1, "good": {"z": 1}}, "'good' is neither a string nor a list of strings"),
        ({"q": "x\x00", "a": "y", "grade": 1, "good": []}, "the row holds a NUL character"),
    ],
)
def test_malformed_json_lines(tmp_path: Path, row: Any, why: str) -> None:
    spec = jsonl(tmp_path / "d.jsonl", [LINES[0], row]) | NAMES | {"references": "good"}
    with pytest.raises(DataError, match=rf"^d\.jsonl:2: {why}"):
        load_records(spec)
    assert load_records(spec | {"on_bad_row": "skip"}).skipped == 1


def test_csv_with_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('a,q,grade\n"You see, no way",I am stuck,2\n')
    [record] = load_records({"kind": "csv", "path": "d.csv"} | NAMES, base=tmp_path)
    assert (record.prompt, record.response, record.level) == ("I am stuck", "You see, no way", 2.0)
    with pytest.raises(DataError, match=r"^d\.csv:1: no column 'prompt'; it has a, q, grade"):
        load_records({"kind": "csv", "path": str(path)})
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="names 'a' twice"):
        load_records({"kind": "csv", "path": str(path), "prompt": "a"})


@pytest.mark.slow  # importing the library takes most of it
def test_datasets_reads_a_local_folder_as_it_would_a_hub_id(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", LINES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        loaded = load_records({"kind": "hub", "id": "set", "prompt": "q", "response": "a"}, base=tmp_path)
        assert [record.response for record in loaded] == ["You see no way out", "Try harder"]
        assert loaded.records[1].where == "set[1]"
        assert loaded.sha256
        with pytest.raises(DataError, match=r"data set 'set' \(train\) has no column 'prompt'; it has q, a"):
            load_records({"kind": "hub", "id": "set"}, base=tmp_path)
        with pytest.raises(DataError, match=r"data set 'set' \(test\) cannot be loaded"):
            load_records({"kind": "hub", "id": "set", "split": "test", "prompt": "q"}, base=tmp_path)


def test_the_synthetic_corpus_is_a_source_that_repeats_from_its_seed() -> None:
    spec = {"kind": "synthetic", "count": 30, "seed": 4}
    loaded = load_records(spec)
    assert (loaded.rows, len(loaded), len(loaded.prompts())) == (30, 30, 30)
    assert loaded == load_records(spec)
    assert loaded.sha256 != load_records(spec | {"seed": 5}).sha256
    assert {record.extras["style"] for record in load_records(spec | {"styles": ["advice"]})} == {"advice"}
    assert all(record.response is None and record.extras["key"] for record in load_records(spec | {"view": "prompts"}))
    with pytest.raises(DataError, match=r"^data\.styles is \[\]: name at least one of plain"):
        load_records(spec | {"styles": []})


def test_a_missing_datasets_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the `datasets` library, which comes with the extra emorl\[data\]"):
        load_records({"kind": "hub", "id": "owner/name"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "pari", "path": "x"}, r"^data\.kind is 'pari' \(did you mean 'pair'\?\); known kinds: pair, "),
        ({"path": "x"}, r"^data\.kind is missing; known kinds: "),
        (
            {"kind": "pair", "pth": "x"},
            r"^data\.pth is unknown \(did you mean 'path'\?\); known keys: on_bad_row, path",
        ),
        ({"kind": "pair"}, r"^data\.path is missing"),
        ({"kind": "pair", "path": ""}, r"^data\.path is '': name a file"),
        ({"kind": "pair", "path": "x", "view": "all"}, r"^data\.view is 'all': Input should be 'prompts'"),
        ({"kind": "pair", "path": "x", "on_bad_row": "ignore"}, r"^data\.on_bad_row is 'ignore'"),
        ({"kind": "annomi", "path": "x", "min_prompt_words": 0}, r"^data\.min_prompt_words is 0"),
        (["pair"], r"^data is a list; allowed: a kind's name or a mapping"),
        ({"kind": 3}, r"^data\.kind is 3; known kinds"),
    ],
)
def test_a_source_that_is_named_wrongly_is_one_line(spec: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_source(spec)
    assert "\n" not in caught.value.message


def test_every_kind_says_its_own_name() -> None:
    for kind, source in SOURCES.items():
        assert source.model_fields["kind"].default == kind
        assert source.__doc__


@pytest.mark.parametrize(
    "fields", [{"prompt": " "}, {"prompt": "x", "response": ""}, {"prompt": "x", "level": float("nan")}]
)
def test_a_record_cannot_be_empty_or_not_finite(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^f\.csv:3: "):
        Record(**fields, where="f.csv:3")
