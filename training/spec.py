"""A mapping with a `kind` -> a frozen model. Data sources and scorers are both named this way in recipes and commands.

Unknown kinds and keys are refused with the nearest known one; every refusal is one line naming the field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from emorl_core.errors import EmorlError


class Spec(BaseModel):
    """Base of everything that a recipe names by `kind`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        raise error(f"{where}.kind is {_shown(kind)}{hint}; known kinds: {', '.join(kinds)}", param=f"{where}.kind")
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
        field = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "missing":
            raise error(f"{field} is missing", param=field) from None
        reason = first["msg"].removeprefix("Value error, ")
        raise error(f"{field} is {_shown(first['input'])}: {reason}", param=field) from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
