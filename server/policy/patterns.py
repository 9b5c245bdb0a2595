"""Pattern lists: a YAML file that says which messages get no draft, the reason, and the notice shown instead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import regex
from pydantic import Field, ValidationError

from emorl_core.config import Strict, explain
from emorl_core.errors import cut
from emorl_core.files.documents import read_yaml
from emorl_core.files.reading import Unreadable
from emorl_core.policy import MAX_NOTICE, REASONS, DoNotDraft
from emorl_core.text.chat import Message
from server.policy.folding import folded

_NAME = regex.compile(r"<([a-z_]+)>")
Pattern = Annotated[str, Field(min_length=1, max_length=1000)]


class PatternFile(Strict):
    """The file. Patterns are regular expressions over folded text (`server.policy.folding`), for whole words."""

    reason: Literal[REASONS]  # type: ignore[valid-type]  # the one list of reasons
    notice: Annotated[str, Field(min_length=1, max_length=MAX_NOTICE)]
    words: dict[str, Pattern] = Field(default_factory=dict)  # name -> the expression that <name> stands for
    passes: list[Pattern] = Field(default_factory=list)  # removed from the text before matching
    matches: Annotated[list[Pattern], Field(min_length=1)]


class PatternList:
    """A policy. It checks user messages one by one, not replies or system messages."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """timeout_s: for matching one message. Raises `Unreadable`."""
        try:
            read = PatternFile.model_validate(read_yaml(path, regular=False))
        except ValidationError as error:
            raise Unreadable(explain(error), path=path) from None
        if not read.notice.strip():
            raise Unreadable("notice is empty; allowed: a text", path=path)
        self._timeout_s = timeout_s
        self._answer = DoNotDraft(read.reason, read.notice.strip())
        self._passes = _compiled(read, "passes", path)
        self._matches = _compiled(read, "matches", path)

    def __call__(self, messages: Sequence[Message]) -> DoNotDraft | None:
        """Raises `TimeoutError` if matching takes too long, since a client may send text on which an expression is
        slow."""
        return self._answer if any(each.role == "user" and self._found(each.text) for each in messages) else None

    def _found(self, text: str) -> bool:
        until = time.monotonic() + self._timeout_s

        def left_s() -> float:
            return max(1e-3, until - time.monotonic())

        for form in folded(text):
            rest = form
            if self._passes is not None:
                rest = self._passes.sub(" , ", form, timeout=left_s(), concurrent=True)
            assert self._matches is not None  # the file has at least one pattern
            if self._matches.search(rest, timeout=left_s(), concurrent=True):
                return True
        return False


def _expanded(pattern: str, words: dict[str, str], where: str, path: Path) -> str:
    """The patterns with every <name> expanded. Raises `Unreadable`."""
    for name in _NAME.findall(pattern):
        if name not in words:
            raise Unreadable(f"{where} names <{name}>; allowed: a name among words, above it", path=path)
    spelt = _NAME.sub(lambda found: f"(?:{words[found[1]]})", pattern)
    try:
        regex.compile(spelt)
    except (regex.error, RecursionError, OverflowError):
        raise Unreadable(f"{where} is no regular expression: {cut(pattern)}", path=path) from None
    return spelt


def _compiled(read: PatternFile, key: Literal["passes", "matches"], path: Path) -> regex.Pattern[str] | None:
    """One expression for all patterns under a key; None where there are none."""
    words: dict[str, str] = {}
    for name, pattern in read.words.items():
        words[name] = _expanded(pattern, words, f"words.{name}", path)
    spelt = [_expanded(each, words, f"{key}.{i}", path) for i, each in enumerate(getattr(read, key))]
    return regex.compile(rf"(?<!\w)(?:{'|'.join(f'(?:{each})' for each in spelt)})(?!\w)") if spelt else None
