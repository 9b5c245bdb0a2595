"""Frozen sections of settings that recipes, bundles and commands select by `kind`. A bad value gives a one-line error.

Unknown keys and kinds are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, model_validator

from emorl_core.config import Strict, key_of, reason_of
from emorl_core.errors import EmorlError, cut


class Section(Strict):
    """The string under a field says what it means and in which unit; `docs/reference/recipe.md` lists them all."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    raise ValueError(
                        f"unknown key {cut(key)}{nearest(str(key), cls.model_fields)}; known keys: {known}"
                    )
        return values


class Spec(Section):
    """Base of sections selected by `kind`: data sources and scorers."""


S = TypeVar("S", bound=Spec)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing when no known name is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def parse_spec(kinds: Mapping[str, type[S]], spec: object, *, where: str, error: type[EmorlError]) -> S:
    """`spec` (a model, a kind's name, or a mapping with `kind`) -> the model of that kind.

    Raises `error` with one line that starts with the field's dotted name below `where`.
    """
    if isinstance(spec, Spec):
        for model in kinds.values():
            if isinstance(spec, model):
                return spec
        raise error(f"{where} is a {type(spec).__name__}; known kinds: {', '.join(kinds)}", param=where)
    if isinstance(spec, str):
        spec = {"kind": spec}
    if not isinstance(spec, Mapping):
        raise error(f"{where} is a {type(spec).__name__}; allowed: a kind's name or a mapping with it", param=where)
    values = dict(spec)
    kind = values.pop("kind", None)
    if kind is None:
        raise error(f"{where}.kind is missing; known kinds: {', '.join(kinds)}", param=f"{where}.kind")
    if not isinstance(kind, str) or kind not in kinds:
        hint = nearest(kind, kinds) if isinstance(kind, str) else ""
        raise error(f"{where}.kind is {cut(kind)}{hint}; known kinds: {', '.join(kinds)}", param=f"{where}.kind")
    return parse_fields(kinds[kind], values, where=where, error=error)


def parse_fields(model: type[S], values: Mapping[str, object], *, where: str, error: type[EmorlError]) -> S:
    """Validate `values` as `model`. Raises `error`: unknown keys with the nearest known one, else the first fault."""
    known = [name for name in model.model_fields if name != "kind"]
    for key in values:
        if key not in known:
            hint = nearest(str(key), known)
            raise error(f"{where}.{key} is unknown{hint}; known keys: {', '.join(known)}", param=f"{where}.{key}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        field = key_of([where, *first["loc"]])
        if first["type"] == "missing":
            raise error(f"{field} is missing", param=field) from None
        raise error(f"{field} is {cut(first['input'])}: {reason_of(first)}", param=field) from None
