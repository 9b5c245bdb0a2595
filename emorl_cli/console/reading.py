"""Parses command line values: numbers, weights, text, and files or standard input."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

STDIN, STDIN_NAME = "-", "standard input"


def utf_8(text: str, what: str) -> str:
    """An argument that is text.

    Raises:
        InvalidRequest: it contains bytes that are not UTF-8; Python represents them as lone surrogates, which no
            tokenizer accepts.
    """
    from emorl_core.errors import InvalidRequest

    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} is not UTF-8 text", param="prompt") from None
    return text


def whole(text: str) -> int:
    """A whole number, as every option takes it. Raises ValueError."""
    _check_plain(text)
    return int(text)


def number(text: str) -> float:
    """A number, as every option takes it. Raises ValueError."""
    _check_plain(text)
    return float(text)


def _check_plain(text: str) -> None:
    if "_" in text or not text.isascii():  # Python reads 1_0 as ten, and accepts digits of every script
        raise ValueError(f"{text!r} is not in plain digits")


def parse_weights(text: str | None) -> dict[str, float] | None:
    """`reflection=0.7,empathy=0.3` -> {"reflection": 0.7, "empathy": 0.3}.

    Raises:
        InvalidWeights: a part that is not NAME=NUMBER, or a name given twice. The rest is `emorl_core.weights`' to say.
    """
    from emorl_core.errors import InvalidWeights

    if text is None:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        try:
            value = number(amount)
        except ValueError:
            raise InvalidWeights(
                f"--weights: {part[:40]!r} is not NAME=NUMBER; write for example reflection=0.7,empathy=0.3",
                param="weights",
            ) from None
        if name in weights:
            raise InvalidWeights(f"--weights: {name[:40]!r} is given twice", param="weights")
        weights[name] = value
    return weights


def read_chat(source: str) -> list[Any]:
    """The messages of `--chat`; `emorl_core.text.chat.read_messages` validates them.

    Raises:
        InvalidRequest: no such file, or no JSON list.
    """
    from emorl_core.errors import InvalidRequest
    from emorl_core.files.documents import parse_json
    from emorl_core.files.reading import Unreadable

    name = STDIN_NAME if source == STDIN else source
    try:
        messages = parse_json(read_source(source))
    except Unreadable as error:
        raise InvalidRequest(f"--chat: {name}: not JSON: it {error.reason}", param="chat") from None
    if not isinstance(messages, list):
        raise InvalidRequest(f"--chat: {name}: must be a JSON list of messages", param="chat")
    return messages


def read_source(source: str) -> str:
    """The text of a file, or of standard input for `-`, regardless of the terminal's encoding.

    Raises:
        Unreadable: it cannot be read.
    """
    from emorl_core.files.reading import Unreadable
    from emorl_core.files.text_files import decode, read_text

    if source != STDIN:
        return read_text(Path(source))
    if sys.stdin is None:
        raise Unreadable("cannot be read: it is closed", path=STDIN_NAME)
    return decode(sys.stdin.buffer.read(), STDIN_NAME)


def scorer_specs(given: list[str]) -> dict[str, Any]:
    """`reflection=lexical_reflection`, `empathy={kind: cross_encoder, model: scorers/empathy}` -> specs by name.

    Raises `SearchError`.
    """
    from emorl_core.bundles.bundle import NAME
    from emorl_core.files.documents import parse_yaml
    from emorl_core.files.reading import Unreadable
    from training.search.strategies.grid import SearchError

    specs: dict[str, Any] = {}
    for text in given:
        name, equals, spec = text.partition("=")
        if not equals or not name.strip():
            raise SearchError(f"--scorer {text[:60]!r} is not NAME=KIND", param="scorer")
        if not re.fullmatch(NAME, name):
            raise SearchError(
                f"--scorer: the name {name[:40]!r} must be up to 64 letters, digits, _, . and -", param="scorer"
            )
        if name in specs:
            raise SearchError(f"--scorer: {name[:40]!r} is given twice", param="scorer")
        try:
            specs[name] = parse_yaml(spec)
        except Unreadable as error:
            raise SearchError(
                f"--scorer {name[:40]}: neither a kind nor a YAML mapping: it {error.reason}", param="scorer"
            ) from None
    return specs
