"""What recipes and commands are made of: frozen sections, and models named by `kind`; one line refuses a bad value.

Unknown keys and kinds are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, ValidationError, model_validator

from emorl_core.config import Strict, key_of, reason_of
from emorl_core.errors import EmorlError, cut


class RecipeError(EmorlError):
    """A recipe, or an override of it, that cannot be used; one line with field, value and what is allowed."""

    code = "invalid_recipe"


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


def is_default(value: object) -> Callable[[Any], bool]:
    """For `exclude_if` of a key that came later: a recipe without it has the values, and the hash, that it always had,
    so runs that were begun before go on."""
    return lambda found: bool(found == value)


class Start(Section):
    """Where a model comes from: exactly one of `hub`, `path` and the field that `other` names."""

    other: ClassVar[str]

    hub: str | None = None
    """Hugging Face hub id, such as `google-t5/t5-base` or `HuggingFaceTB/SmolLM2-135M-Instruct`."""
    revision: str | None = None
    """Branch, tag or commit of `hub`."""
    path: str | None = None
    """Checkpoint folder; relative paths start at the recipe's folder."""

    @model_validator(mode="after")
    def _one_of(self) -> Start:
        if sum(getattr(self, name) is not None for name in ("hub", "path", self.other)) != 1:
            raise ValueError(f"give exactly one of hub, path and {self.other}")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self


class Spec(Section):
    """Base of everything that a recipe or a command names by `kind`: data sources and scorers."""


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
