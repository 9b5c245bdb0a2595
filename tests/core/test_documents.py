"""YAML and JSON that a person or a stranger wrote: nothing in it is dropped, and it stays within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from emorl_core.files.documents import MOST_YAML, parse_json, parse_yaml, read_json, read_yaml
from emorl_core.files.reading import Missing, Unreadable


def refusal(text: str, parse: Any = parse_yaml) -> str:
    with pytest.raises(Unreadable) as caught:
        parse(text)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    return caught.value.message


def bomb(first: str, each: str) -> str:
    """Thirteen lines, each of which names the one above it nine times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {each.format(','.join([f'*a{n - 1}'] * 9))}" for n in range(1, 13)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' stands twice, first in line 1"),
        ("a:\n  b: {c: 1, d: 2, c: 3}", "line 2: key 'c' stands twice, first in line 2"),
        ('a: 1\n"a": 2', "line 2: key 'a' stands twice"),
        ("- [1, {a: 1, a: 2}]", "key 'a' stands twice"),
        ("c: {<<: {a: 1}, <<: {b: 2}}", "key '<<' stands twice"),
        ("yes: 1", "line 1: key yes is read as true or false; write text, in quotes"),
        ("a: 1\n2026: x", "line 2: key 2026 is read as a number; write text, in quotes"),
        ("~: x", "is read as null"),
        ("? [a, b]\n: x", "is read as a list"),
        ("? {a: b}\n: x", "is read as a mapping"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("a: &a [*a]", "line 1: an alias stands inside what it stands for"),
        ("a: &a {b: {c: *a}}", "an alias stands inside what it stands for"),
        ("a: &a\n  <<: *a", "an alias stands inside what it stands for"),
        ("a: *nowhere", "undefined alias"),
        (bomb("[x, x]", "[{}]"), "with its aliases written out it holds more than"),
        (bomb("{x: 1, y: 2}", "{{<<: [{}]}}"), "with its aliases written out it holds more than"),
        (f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 1000)}]", "with its aliases written out it holds more than"),
        ("<<: 1", "<< takes a mapping or a list of mappings"),
        ("[" * 5000, "nested too deeply"),
        ("- " * 5000 + "x", "nested too deeply"),
        ("x: " + "9" * 400, "line 1: a whole number of 400 digits; allowed: below 2^64"),
        ("x: " + "9" * 5000, "cannot be read as !!int"),
        ("x: -18446744073709551616", "a whole number of"),
        ("x: " + ":".join("1" * 400), "a whole number of"),
        ("x: 1.0e+400", "is too large; allowed: up to 1.8e308"),
        ("x: " + ":".join("1" * 400) + ".5", "cannot be read as !!float"),
        ("x: 0x_", "'0x_' cannot be read as !!int"),
        ("x: 1_000", "line 1: '1_000' would be read as 1000; write a number in plain digits, a text in quotes"),
        ("a: 1\nx: [1_0.5]", "line 2: '1_0.5' would be read as 10.5"),
        ("x: 1:30", "'1:30' would be read as 90"),
        ("x: -010", "'-010' would be read as -8"),
        ("x: !!int '1_0'", "'1_0' would be read as 10"),
        ("x: !!bool maybe", "'maybe' cannot be read as !!bool"),
        ("x: !!float ''", "cannot be read as !!float"),
        ("x: !!binary aGVsbG8=", "the tag !!binary is for no plain data"),
        ("x: !!set {a, b}", "the tag !!set is for no plain data"),
        ("x: !!map [1]", "the tag !!map is for no plain data"),
        ("x: !!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd is for no plain data"),
        ("x: !unknown y", "the tag !unknown is for no plain data"),
        (f"x: !{'u' * 5000} y", f"the tag !{'u' * 59} is for no plain data"),
        ("a: [", "cannot be read as YAML"),
        ("a: \x00", "cannot be read as YAML"),
    ],
)  # fmt: skip
def test_yaml_that_would_lose_something_or_never_end_is_refused_by_line(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1\nb: [x, 2.5, true, null, .inf]", {"a": 1, "b": ["x", 2.5, True, None, float("inf")]}),
        ("on_day: 2025-08-01\nat: 2025-08-01 10:00:00", {"on_day": "2025-08-01", "at": "2025-08-01 10:00:00"}),
        ("a: 2025-99-99", {"a": "2025-99-99"}),
        ("a: &x {k: [1]}\nb: *x", {"a": {"k": [1]}, "b": {"k": [1]}}),
        ("base: &b {x: 1, y: 2}\nc: {<<: *b, x: 3}", {"base": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}),
        ("c: {x: 3, <<: [{x: 1, y: 2}, {y: 5, z: 6}]}", {"c": {"x": 3, "y": 2, "z": 6}}),
        ("'yes': 1\n'1': 2", {"yes": 1, "1": 2}),
        ("a: 18446744073709551615", {"a": 2**64 - 1}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: =", {"a": "="}),
        ("a: '1_000'\nb: [0, -0.5, 0x10]", {"a": "1_000", "b": [0, -0.5, 16]}),
        ("x: 1\n# a comment\n...\n", {"x": 1}),
    ],
)
def test_yaml_comes_out_as_plain_data(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_what_an_alias_names_twice_is_not_shared() -> None:
    """`--set a.k=2` after `b: *a` would change both."""
    found = parse_yaml("a: &x {k: [1]}\nb: *x")
    found["a"]["k"].append(2)
    assert found["b"] == {"k": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "key 'a' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 400, "a whole number of 400 digits; allowed: below 2^64"),
        ("-" + "9" * 5000, "a whole number of 5000 digits"),
        ("1e999", "the number '1e999' is too large"),
        ("-1" + "0" * 400 + ".0", "is too large"),
        ('{"a": ', "cannot be read as JSON: Expecting value in line 1"),
        ("", "cannot be read as JSON"),
        ("[1]\n[2]", "cannot be read as JSON: Extra data in line 2"),
    ],
)
def test_json_that_would_lose_something_or_never_end_is_refused(text: str, message: str) -> None:
    assert message in refusal(text, parse_json)


def test_json_comes_out_as_it_is() -> None:
    assert parse_json('{"a": [-5, 0, 1.5e3, null, true, "x"], "b": 18446744073709551615}') == {
        "a": [-5, 0, 1500.0, None, True, "x"],
        "b": 2**64 - 1,
    }
    assert parse_json('{"a": 1, "a": 2}', unique=False) == {"a": 2}


def test_files_are_named_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for read in (read_yaml, read_json):
        path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
        assert read(path) == {"a": 1}, "with a byte-order mark"
        path.write_bytes('{"a": 1}'.encode("utf-16"))
        with pytest.raises(
            Unreadable, match=r"file: cannot be read as .*: it is not UTF-8 but UTF-16; save it as UTF-8"
        ):
            read(path)
        path.write_bytes(b'{"a":\n "caf\xe9"}')
        with pytest.raises(Unreadable, match=r"file: cannot be read as .*: line 2 is not UTF-8 text"):
            read(path)
        path.write_text('{"a": 1, "a": 2}')
        with pytest.raises(Unreadable, match=r"file: cannot be read as .* stands twice"):
            read(path)
        with pytest.raises(Missing, match="none: no such file"):
            read(tmp_path / "none")
    with open(path, "wb") as huge:
        huge.truncate(MOST_YAML + 1)
    with pytest.raises(Unreadable, match="file: is larger than 1 MiB"):
        read_yaml(path)


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029"])
def test_a_line_of_yaml_ends_where_it_ends_in_every_text_file(end: str) -> None:
    """A word processor leaves these within a line; PyYAML would end the line there, and refuse what follows."""
    said = f"a: i feel{end}tired\nb: |\n  one{end}two\n  three\n{end}c: '\ue000'\n"
    assert parse_yaml(said) == {"a": f"i feel{end}tired", "b": f"one{end}two\nthree\n", f"{end}c": "\ue000"}


def test_what_pyyaml_writes_comes_back() -> None:
    for text in ("x\u2028y", "x\u2029y\nz", "x\u2028 y"):
        assert parse_yaml(yaml.safe_dump({"a": text}, allow_unicode=True)) == {"a": text}
