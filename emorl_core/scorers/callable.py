"""A Python function by dotted path, for custom scorers. It runs code, so use only recipes that you trust."""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError


class CallableConfig(ScorerConfig):
    """`path` is `package.module:function` (or `package.module.function`). The function is called as
    `function(prompts=…, completions=…, **arguments, **columns)`, with the columns that it accepts as keywords."""

    runs_code: ClassVar[bool] = True

    kind: Literal["callable"] = "callable"
    path: str
    arguments: dict[str, Any] = Field(default_factory=dict)  # fixed keyword arguments, such as a seed

    @field_validator("path")
    @classmethod
    def _dotted(cls, value: str) -> str:
        module, _, name = value.replace(":", ".").rpartition(".")
        if not module or value.count(":") > 1 or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError("write it as package.module:function")
        return value

    def build(self, context: Context) -> Scorer:
        function = self._find()
        parameters = inspect.signature(function).parameters.values()
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        known = {parameter.name for parameter in parameters}
        for name in ("prompts", "completions", *self.arguments):
            if not takes_any and name not in known:
                raise ScorerError(
                    f"scorer {self.path!r} takes no {name!r}; its parameters: {', '.join(sorted(known))}", param="path"
                )
        return Called(
            self.path.replace(":", ".").rpartition(".")[2], function, self.arguments, None if takes_any else known
        )

    def _find(self) -> Callable[..., Any]:
        module_name, _, name = self.path.replace(":", ".").rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ScorerError(
                f"scorer {self.path!r}: cannot import {module_name}: {type(error).__name__}: {error}", param="path"
            ) from error
        found = getattr(module, name, None)
        if found is None or not callable(found):
            what = "has no" if found is None else "holds a value, not a function, in"
            raise ScorerError(f"scorer {self.path!r}: module {module_name} {what} {name!r}", param="path")
        if inspect.isclass(found):
            raise ScorerError(f"scorer {self.path!r} is a class; name a function or an instance", param="path")
        return found


class Called:
    """The function with its fixed arguments; columns that it does not accept are omitted."""

    def __init__(
        self, name: str, function: Callable[..., Any], arguments: dict[str, Any], known: set[str] | None
    ) -> None:
        self.__name__ = name
        self._function, self._arguments, self._known = function, arguments, known

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        columns = {
            name: value
            for name, value in kwargs.items()
            if name not in self._arguments and (self._known is None or name in self._known)
        }
        scores: list[float] = self._function(prompts=prompts, completions=completions, **self._arguments, **columns)
        return scores
