"""Strict parsing of YAML and JSON: the result is plain JSON data of bounded size, and nothing in the text is ignored.

Parsers of both formats silently keep the last of two equal keys; YAML's aliases can expand to a gigabyte in a hundred
lines or contain themselves; numbers can be of any length.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from emorl_core.errors import cut, one_line
from emorl_core.files.reading import Unreadable, read_bytes
from emorl_core.files.text_files import LINE_ENDS_OF_PROGRAMS, decode

MOST_YAML = 2**20  # bytes of a YAML file
MOST_JSON = 2**26  # bytes of a JSON file: an answer with many receipts
_MOST_EXPANDED = 2**21  # values and characters of a YAML text with its aliases expanded
_LARGEST = 2**64  # bound on whole numbers, seeds included
_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str")}
_MERGE = f"{_TAG}merge"
# YAML 1.1 numbers that mean another number or a text elsewhere: 1_000, 1:30 (base 60), 010 (octal).
_TWO_WAYS = re.compile(r".*[_:].*|[-+]?0[0-9]+")
_TOO_DEEP = "is nested too deeply"


def read_yaml(path: Path, *, regular: bool = True) -> Any:
    """The single document of a YAML file as None, bool, int, float, str, list, or dict with text keys. A date stays
    text.

    Raises:
        Unreadable: see `read_bytes` and `parse_yaml`; one line.
    """
    return parse_yaml(decode(read_bytes(path, most=MOST_YAML, regular=regular), path, kind="YAML"), path=path)


def parse_yaml(text: str, *, path: Path | None = None) -> Any:
    """A text as one YAML document; `path` is for messages.

    Raises:
        Unreadable: no YAML, several documents, a key twice or one that is not text, aliases that contain themselves or
            expand beyond measure, a tag for anything but plain data, a number too large to be meant.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Sizes().of(node)
        return loader.plain(node)
    except yaml.YAMLError as error:
        raise Unreadable(f"cannot be read as YAML: {one_line(error)}", path=path) from None
    except RecursionError:
        raise Unreadable(_TOO_DEEP, path=path) from None


def read_json(path: Path, *, most: int = MOST_JSON, regular: bool = True, unique: bool = True) -> Any:
    """The value in a JSON file. `unique` as in `parse_json`. Raises `Unreadable`, one line."""
    return parse_json(decode(read_bytes(path, most=most, regular=regular), path, kind="JSON"), path=path, unique=unique)


def parse_json(text: str, *, path: Path | None = None, unique: bool = True) -> Any:
    """A text as one JSON value; `path` is for messages.

    Args:
        unique: refuse repeated keys, which are mistakes in files written by people; else the last one counts.

    Raises:
        Unreadable: no JSON, a key twice, a number too large to be meant, nesting too deep.
    """
    try:
        return json.loads(text, parse_int=_whole, parse_float=_real, object_pairs_hook=distinct if unique else None)
    except json.JSONDecodeError as error:
        raise Unreadable(f"cannot be read as JSON: {error.msg} in line {error.lineno}", path=path) from None
    except _Refused as error:
        raise Unreadable(f"cannot be read as JSON: {error}", path=path) from None
    except RecursionError:
        raise Unreadable(_TOO_DEEP, path=path) from None


class _Refused(ValueError):
    """An error inside a JSON text; one line."""


class RepeatedKey(_Refused):
    """A key occurs twice in one object."""


def distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for the `object_pairs_hook` of `json.loads`. Raises RepeatedKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKey(f"key {cut(repeated(pairs))} stands twice")
    return found


def repeated(pairs: Iterable[tuple[str, Any]]) -> str:
    """The first repeated key of a JSON object that has one."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise ValueError("every key stands once")


def _whole(digits: str) -> int:
    if len(digits) > len(str(-_LARGEST)) or abs(number := int(digits)) >= _LARGEST:
        raise _Refused(f"a whole number of {len(digits.lstrip('-'))} digits; allowed: below 2^64")
    return number


def _real(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _Refused(f"the number {cut(digits)} is too large; allowed: up to 1.8e308")
    return number


class _Sizes:
    """Sizes of a document's nodes with every alias expanded; a node with many aliases is measured once."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node) -> int:
        """The number of values and characters. Raises YAMLError for a node that contains itself, and for too many."""
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value)
        if (known := self._known.get(id(node))) is not None:
            return known
        if id(node) in self._open:
            raise _fault("an alias stands inside what it stands for", node)
        self._open.add(id(node))
        size = 1 + sum(self.of(child) for child in _children(node))
        self._open.remove(id(node))
        if size > _MOST_EXPANDED:
            raise _fault(f"with its aliases written out it holds more than {_MOST_EXPANDED:,} values and letters", node)
        self._known[id(node)] = size
        return size


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return cast("list[yaml.Node]", node.value)


def _stand_ins(text: str) -> tuple[str, str]:
    """The unusual line ends in a text (U+0085, U+2028 and the like), each with a character that does not occur in it.
    In YAML 1.2 they are plain characters; PyYAML implements YAML 1.1 and would end a line there."""
    free = "".join(letter for letter in map(chr, range(0xE000, 0xF900)) if letter not in text)
    ends = "".join(end for end in LINE_ENDS_OF_PROGRAMS if end in text)[: len(free)]
    return ends, free[: len(ends)]


class _Loader(yaml.SafeLoader):
    """Nodes as plain data. Two places with the same alias share no objects."""

    def __init__(self, text: str) -> None:
        ends, letters = _stand_ins(text)
        super().__init__(text.translate(str.maketrans(ends, letters)))
        self._ends = str.maketrans(letters, ends)
        self._folded = re.compile(f"[ \t]*([{letters}])[ \t]*") if ends else None

    def plain(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.plain(item) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node)
        raise _fault(f"the tag {node.tag.replace(_TAG, '!!')[:60]} is for no plain data", node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value in node.value:
            key = "<<" if key_node.tag == _MERGE else self._key(key_node)
            if key in lines:
                raise _fault(f"key {cut(key)} stands twice, first in line {lines[key]}", key_node)
            lines[key] = _line(key_node)
            if key_node.tag == _MERGE:
                merged = self._merged(value)
            else:
                own[key] = self.plain(value)
        return merged | own

    def _key(self, node: yaml.Node) -> str:
        value = self.plain(node)
        if not isinstance(value, str):
            shown = node.value if isinstance(node, yaml.ScalarNode) else "…"
            raise _fault(f"key {shown[:60]} is read as {_kind(value)}; write text, in quotes", node)
        return value

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        """YAML's merge key: one mapping or several, of which the first one that has a key counts."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise _fault("<< takes a mapping or a list of mappings", source)
            found = self._mapping(source) | found
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if self._folded is not None:
            # Inside quotes, blanks around a line break are insignificant, and PyYAML itself writes them there.
            text = self._folded.sub(r"\1", node.value) if node.style in ("'", '"') else node.value
            node.value = text.translate(self._ends)
        try:
            value = self.construct_object(node)
        except (ValueError, LookupError, OverflowError):  # by an explicit tag, or with thousands of digits
            raise _fault(f"{cut(node.value)} cannot be read as {node.tag.replace(_TAG, '!!')}", node) from None
        if isinstance(value, int) and abs(value) >= _LARGEST:
            raise _fault(f"a whole number of {len(node.value)} digits; allowed: below 2^64", node)
        if isinstance(value, float) and math.isinf(value) and "inf" not in node.value.lower():
            raise _fault(f"the number {cut(node.value)} is too large; allowed: up to 1.8e308", node)
        if type(value) in (int, float) and _TWO_WAYS.fullmatch(node.value):
            raise _fault(
                f"{cut(node.value)} would be read as {value}; write a number in plain digits, a text in quotes", node
            )
        return value


# A date stays text, since JSON has no dates and readers want what was written. So does a lone `=`.
_TEXT = {f"{_TAG}timestamp", f"{_TAG}value"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _fault(message: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {_line(node)}: {message}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", type(None): "null", list: "a list"}
    return names.get(type(value), "a mapping")
