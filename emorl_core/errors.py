"""The error tree. No HTTP codes here: `server/door/errors.py` is the only place that knows them.

Every message is one line for a person: it names the field, the value and what is allowed. Messages never hold prompt
or generated text.
"""

from __future__ import annotations

import math
from typing import Self


class EmorlError(Exception):
    """Base of everything this project raises on purpose.

    `param` is the dotted name of the field at fault, when there is one; `code` is a short stable word for programs.
    """

    code = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def renamed(self, old: str, new: str) -> Self:
        """The same error under the caller's name of the field; unchanged if it is about another field."""
        name, dot, rest = (self.param or "").partition(".")
        if name != old:
            return self
        return type(self)(self.message.replace(old, new, 1), param=f"{new}{dot}{rest}")


class InvalidRequest(EmorlError):
    """The caller sent something that cannot be served."""

    code = "invalid_value"


class InvalidWeights(InvalidRequest):
    """Unknown objective, NaN, inf, all zero, negative without `normalize: false`, weights beside a profile."""

    code = "invalid_weights"


class PromptTooLong(InvalidRequest):
    """The encoded prompt exceeds the bundle's `max_source_tokens`."""

    code = "prompt_too_long"


class BundleError(EmorlError):
    """A bundle folder that cannot be served; the message names the file and the key."""

    code = "invalid_bundle"


class AdapterError(BundleError):
    """An adapter that does not fit the base or uses features that cannot run in lanes."""

    code = "invalid_adapter"


class UnsupportedModel(BundleError):
    """A base model whose architecture or checkpoint is not supported."""

    code = "unsupported_model"


class EngineError(EmorlError):
    """A request that failed inside the engine. Other requests go on."""

    code = "engine_error"


class NonFinite(EngineError):
    """The model produced NaN or inf for this request."""

    code = "non_finite"


class OutOfMemory(EngineError):
    """The device had no memory left for this request."""

    code = "out_of_memory"


def shown(value: object, most: int = 40) -> str:
    """A value as shown in messages, cut to `most` characters, since a number may have thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"about {'-' if value < 0 else ''}1e{int(value.bit_length() * math.log10(2))}"
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def cut(value: object) -> str:
    """A value from a file, as shown in messages."""
    return "null" if value is None else shown(value, 60)


def one_line(error: BaseException, most: int = 200) -> str:
    """Another library's error message as one line, cut to `most` characters; its type if it has no message."""
    return " ".join(str(error).split())[:most] or type(error).__name__
