"""The strict base of everything that is configured by a file or a request, and the one printer of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from emorl_core.errors import cut


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def explain(error: ValidationError) -> str:
    """Every fault in one line: key, what was found, what is allowed."""
    lines = []
    for item in error.errors(include_url=False):
        where = key_of(item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}")
            continue
        found = item["input"]
        hidden = item["type"] == "missing" or isinstance(found, (dict, list, BaseModel))
        line = reason_of(item) if hidden or not where else f"{reason_of(item)} (found {cut(found)})"
        lines.append(f"{where}: {line}" if where else line)
    return "; ".join(lines)


def faults(error: ValidationError) -> list[str]:
    """Every fault by key and reason alone: what was found there may be a person's words."""
    return [
        f"{key_of(item['loc']) or 'file'}: {reason_of(item)}"
        for item in error.errors(include_url=False, include_input=False)
    ]


def key_of(place: Sequence[int | str]) -> str:
    """`profiles.warm.weights`: where a fault is. pydantic marks the key of a mapping by a part of its own."""
    return ".".join(str(part) for part in place if part != "[key]")


def reason_of(fault: Mapping[str, Any]) -> str:
    """What a validator said, without pydantic's prefix."""
    return str(fault["msg"]).removeprefix("Value error, ")
