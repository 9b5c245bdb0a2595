"""PEFT's `alpha_pattern` and `rank_pattern`: other values for some modules, by regular expressions.

Adapters may be untrusted, and an expression can keep Python's own engine busy forever while it holds the GIL. `regex`
has a timeout and releases the GIL while it matches. Its compiler has no timeout, and nested repeated groups grow
exponentially. So only simple expressions, enough to select modules by path, are compiled.
"""

from __future__ import annotations

import re
import time
from typing import Any

import regex

from emorl_core.errors import cut
from emorl_core.files.reading import Unreadable

_MOST_LETTERS = 300  # of one expression; a module's path has about fifty characters
_MOST_DEPTH = 4  # nesting depth of groups
# Names, . * + ? | ^ $ [] () (?:), counted repeats except of groups, and \. and \- as `re.escape` writes them.
_SYNTAX = re.compile(r"(?:[\w.*+?|^$\[\])-]|\((?!\?)|\(\?:|\\[.dDwW-]|(?<!\))\{\d{1,2}(?:,\d{0,2})?\})*")
_MOST_S = 5.0  # for all matching of one table; a thousand modules and as many plain paths take less than one second


class Patterns:
    """One of the two tables of adapter_config.json."""

    def __init__(self, option: str, table: object) -> None:
        """Raises `Unreadable`: not a mapping, or a key that is no regular expression."""
        if table is not None and not isinstance(table, dict):
            raise Unreadable(f"{option} is a {type(table).__name__}; allowed: a mapping of module paths to numbers")
        self._option = option
        self._entries = [(key, self._compiled(key), value) for key, value in (table or {}).items()]
        self._left_s = _MOST_S

    def value(self, module: str, default: Any) -> Any:
        """The value of the first key that matches the whole path or its end after a dot, which is PEFT's rule.

        Raises `Unreadable` where matching takes too long.
        """
        for key, expression, value in self._entries:
            if self._matches(key, expression, module):
                return value
        return default

    def _compiled(self, key: str) -> Any:
        if len(key) > _MOST_LETTERS:
            raise Unreadable(f"{self._option} has a key of {len(key)} letters; allowed: up to {_MOST_LETTERS}")
        if not _SYNTAX.fullmatch(key) or _depth(key) > _MOST_DEPTH:
            raise Unreadable(f"{self._option} key {cut(key)} is more than picks modules by their paths; write a path")
        pattern = rf"(.*\.)?({key})$"
        try:
            re.compile(pattern)  # PEFT cannot read it either, so nobody trained with it
            return regex.compile(pattern)
        except (re.error, regex.error, RecursionError, OverflowError):
            raise Unreadable(f"{self._option} key {cut(key)} is not a regular expression") from None

    def _matches(self, key: str, expression: Any, module: str) -> bool:
        began = time.perf_counter()
        try:
            found = expression.match(module, timeout=self._left_s, concurrent=True)
        except TimeoutError:
            raise Unreadable(
                f"{self._option} key {cut(key)} takes longer than {_MOST_S:g} s to match; write the module's path"
            ) from None
        self._left_s = max(1e-3, self._left_s - (time.perf_counter() - began))
        return found is not None


def _depth(key: str) -> int:
    depths = [0]
    for letter in key:
        depths.append(depths[-1] + (letter == "(") - (letter == ")"))
    return max(depths)
