"""The strict base class of files and requests, and the one place that formats their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from emorl_core.errors import cut


def check_numbers(given: object, taken: object, place: str = "") -> None:
    """Compare a model with its input, because pydantic reads `"1_0"` as 10 and true as 1.

    Raises:
        ValueError: such a value was read as a number; one line that names it.
    """
    if type(taken) in (int, float):
        if isinstance(given, bool):
            raise ValueError(f"{place} is {str(given).lower()}; allowed: a number")
        if isinstance(given, str) and "_" in given:
            raise ValueError(f"{place} is {cut(given)}; allowed: a number without _ between its digits")
    elif isinstance(given, dict):
        parts = taken if isinstance(taken, dict) else getattr(taken, "__dict__", {})
        for key, value in given.items():
            check_numbers(value, parts.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(given, list) and isinstance(taken, (list, tuple)):
        for number, (value, part) in enumerate(zip(given, taken, strict=False)):
            check_numbers(value, part, f"{place}.{number}")


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _plain_numbers(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        model = validate(data)
        if not cls.model_config.get("strict"):
            check_numbers(data, model)
        return model


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
    """Every fault by key and reason only, since the value may be a person's words."""
    return [
        f"{key_of(item['loc']) or 'file'}: {reason_of(item)}"
        for item in error.errors(include_url=False, include_input=False)
    ]


def key_of(place: Sequence[int | str]) -> str:
    """The path of a fault, `profiles.warm.weights`. pydantic adds an extra part for the key of a mapping."""
    return ".".join(str(part) for part in place if part != "[key]")


def reason_of(fault: Mapping[str, Any]) -> str:
    """A validator's message without pydantic's prefix."""
    return str(fault["msg"]).removeprefix("Value error, ")
