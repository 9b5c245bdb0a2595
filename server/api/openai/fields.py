"""Field types that only OpenAI's API needs: unimplemented fields, and fields of several shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Off:
    """Annotates a field that is not implemented: only one of `values`, which change nothing, is accepted.

    Clients send many such fields with a value that changes nothing (`"n": 1`, `"store": false`).
    """

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._values), "description": "Not implemented: only a value that changes nothing."}

    def _check(self, value: Any) -> Any:
        # JSON distinguishes 0 and false, Python does not.
        if any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in self._values):
            return value
        raise PydanticCustomError("not_implemented", "not implemented")


Null = Annotated[Any, Off(None)]
Empty = Annotated[Any, Off(None, [])]


def one_of(shape: Callable[[Any], str | None], allowed: str) -> Discriminator:
    """Annotates a union whose members are distinguished by shape, so that a wrong value gives one error and not one per
    member. shape: value -> the tag of its member, or None; allowed: the message for None."""
    return Discriminator(shape, custom_error_type="shape", custom_error_message=f"must be {allowed}")


def text_or_list(value: Any) -> str | None:
    """The shape of a field that is a text or a list."""
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None
