"""Tables of docs/reference/ are made of this: `python -m tests.manual` writes them anew; a test fails when they are stale."""

from __future__ import annotations

import argparse
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from emorl_cli.main import VERBS, Parser
from emorl_core.errors import EmorlError
from emorl_core.fake import fake_ensemble
from emorl_core.kinds import Section
from emorl_core.models.causal.gguf import ARCHITECTURES as ARCHITECTURES_OF_GGUF
from emorl_core.scorers import SCORERS
from server.api.fields import Body
from server.app import create_app
from server.door.admission import MAX_RETRY_AFTER_S
from server.door.errors import QueueFull, rule_for
from server.settings import Settings
from tests.supported_models import ARCHITECTURES
from training.data.sources import SOURCES
from training.recipe.recipe import Recipe
from training.rl.settings import PAPER

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
GROUPS = ("positional arguments", "options")  # argparse's own names, which say nothing


# --- the command line ------------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Every verb with its options and examples, from its parser."""
    for verb, (module, summary) in VERBS.items():
        parser = Parser(prog=f"emorl {verb}", description="")
        import_module(module).add_arguments(parser)
        yield f"## emorl {verb}\n\n{summary[0].upper()}{summary[1:]}.\n"
        for title, actions in _groups(parser).items():
            shown = [action for action in actions if verb != "serve" or not _is_setting(action)]
            if not shown:
                continue
            if title:
                yield f"{title[0].upper()}{title[1:]}:\n"
            yield "| argument | meaning |\n|---|---|"
            yield from (f"| {_spelled(action)} | {_meaning(action, parser)} |" for action in shown)
            yield ""
        if verb == "serve":
            yield (
                "Every [setting](../reference.md#settings) but the secrets is a flag too: `--max-queue 64` is "
                "`max_queue`.\n"
            )
        examples = [line.strip() for line in str(parser.epilog).splitlines()[1:]]
        yield "```bash\n" + "\n".join(examples) + "\n```\n"


def _groups(parser: argparse.ArgumentParser) -> dict[str, list[argparse.Action]]:
    """Title -> what is in it; argparse's own two groups are one without a title."""
    groups: dict[str, list[argparse.Action]] = {"": []}
    for group in parser._action_groups:
        title = "" if group.title in GROUPS else str(group.title)
        own = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        groups.setdefault(title, []).extend(own)
    return groups


def _is_setting(action: argparse.Action) -> bool:
    return action.dest in Settings.model_fields and action.dest != "bundle"


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.dest.upper()}`" + (" (may be left out)" if action.nargs == "?" else "")
    value = ""
    if action.nargs != 0:
        given = action.metavar or (
            f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
        )
        value = " " + (" ".join(given) if isinstance(given, tuple) else given)
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = _cell(parser._get_formatter()._expand_help(action) if action.help else "")
    required = "; required" if action.required and action.option_strings else ""
    default = action.default
    unsaid = default not in (None, False, True, [], argparse.SUPPRESS) and "default" not in text
    return text + (f" (default {default})" if unsaid else "") + required


# --- models as tables ------------------------------------------------------------------------------------------------


def table(model: type[BaseModel]) -> Iterator[str]:
    """One row per field; those that other models share come last."""
    schema = model.model_json_schema(by_alias=True)
    needed = schema.get("required", [])
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    shared = {name for base in model.__mro__[1:] for name in getattr(base, "model_fields", ())}
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] in shared):
        key = field.alias or name
        values = _values(schema["properties"][key], schema.get("$defs", {}))
        default = "required" if key in needed else _default(field.get_default(call_default_factory=True))
        meaning = field.description or schema["properties"][key].get("description", "")
        yield f"| `{key}` | {values} | {default} | {_cell(meaning)} |"


def _values(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """What a field takes, in words."""
    if "$ref" in schema:
        target = defs[schema["$ref"].rpartition("/")[2]]
        return "a mapping" if "properties" in target else _values(target, defs)
    for members in ("anyOf", "oneOf"):
        if members in schema and "discriminator" not in schema:
            return ", or ".join(dict.fromkeys(_values(part, defs) for part in schema[members]))
    if "enum" in schema:
        return ", ".join(value if value == "null" else f"`{value}`" for value in map(_literal, schema["enum"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "array":
        item = schema.get("items") or {}
        return f"a list of {_values(item, defs)}" if item else "a list"
    if kind == "object":
        item = schema.get("additionalProperties")
        return f"name: {_values(item, defs)}" if isinstance(item, dict) and item else "a mapping"
    word = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "null": "null",
    }
    return word.get(str(kind), "a kind, or a mapping with `kind`") + _bounds(schema)


def _literal(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _bounds(schema: Mapping[str, Any]) -> str:
    parts = []
    for key, said in (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    ):
        if key in schema:
            parts.append(f"{said} {schema[key]:g}" if abs(schema[key]) < 1e6 else f"{said} {schema[key]}")
    return (" " + " ".join(parts)) if parts else ""


def _default(value: Any) -> str:
    if isinstance(value, BaseModel) or value == {}:
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(map(str, value))}]`" if value else "none"
    if isinstance(value, dict):
        return ", ".join(f"`{key}` {each:g}" for key, each in value.items())
    if isinstance(value, str) and not value.strip():
        return "a space" if value else "empty"
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- the recipe ------------------------------------------------------------------------------------------------------


def recipe() -> Iterator[str]:
    """Every section of a recipe, outermost first."""
    for path, section in sections():
        yield f"### {f'`{path}`' if path else 'Top level'}\n"
        yield _cell(section.__doc__ or "") + "\n"
        yield from table(section)
        if path == "rl":
            yield "\n`preset: paper` changes these defaults: " + ", ".join(_changed(PAPER)) + "."
        yield ""


def _changed(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _changed(value, f"{above}{key}.")
        else:
            yield f"`{above}{key}` {_default(value)}"


def sections(model: type[Section] = Recipe, path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """(dotted path, model) of the recipe and of every section in it."""
    yield path, model
    for name, field in model.model_fields.items():
        for below, suffix in _sections_in(field.annotation):
            yield from sections(below, ".".join(part for part in (path, name + suffix) if part))


def _sections_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[Section], str]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, suffix
        return
    named = ".<name>" if typing.get_origin(annotation) is dict else ""
    if typing.get_origin(annotation) in (dict, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _sections_in(part, suffix + named)


def kinds(models: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    """`kind` -> its keys with their defaults, one row each."""
    yield "| `kind` | keys and defaults |\n|---|---|"
    for kind, model in models.items():
        needed = model.model_json_schema().get("required", [])
        keys = []
        for name, field in model.model_fields.items():
            if name != "kind":
                default = _default(field.get_default(call_default_factory=True))
                keys.append(f"`{name}` " + ("required" if name in needed else default))
        yield f"| `{kind}` | {' · '.join(keys) or 'none'} |"


# --- HTTP ------------------------------------------------------------------------------------------------------------


def request_models() -> dict[str, type[BaseModel]]:
    """Every route that takes a body -> the model of it, as the OpenAPI document names them."""
    paths = create_app(Settings(), fake_ensemble()).openapi()["paths"]
    models = {model.__name__: model for model in _below(Body)}
    found = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                found[f"{method.upper()} {path}"] = models[reference.rpartition("/")[2]]
    return found


def _below(above: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in above.__subclasses__():
        yield model
        yield from _below(model)


def requests() -> Iterator[str]:
    """The fields of every request."""
    for route, model in request_models().items():
        yield f"### {route}\n"
        yield from table(model)
        yield ""


def errors() -> Iterator[str]:
    """Every error that can reach a client, by status."""
    yield "| status | `code` | `type` | Retry-After |\n|---|---|---|---|"
    rows = []
    for error in _errors(EmorlError):
        rule = rule_for(error(""))
        seconds = "" if rule.retry_after_s is None else f"{rule.retry_after_s} s"
        if issubclass(error, QueueFull):
            seconds = f"{rule.retry_after_s} to {MAX_RETRY_AFTER_S} s: when a place is likely free"
        rows.append((rule.status, error.code, rule.type, seconds))
    for status, code, kind, seconds in sorted(rows):
        shown = "422, below `/v1` 400" if status == 422 else str(status)
        yield f"| {shown} | `{code}` | `{kind}` | {seconds} |"


def _errors(above: type[EmorlError]) -> Iterator[type[EmorlError]]:
    """Of the engine and the server: those of training and of the command line never travel."""
    for error in above.__subclasses__():
        if error.__module__ in ("server.door.errors", "emorl_core.errors"):
            yield error
        yield from _errors(error)


# --- models ----------------------------------------------------------------------------------------------------------


def decoders() -> Iterator[str]:
    """The architectures of the golden tests."""
    yield "| model | `model_type` | layers that adapters may change | |\n|---|---|---|---|"
    for row in ARCHITECTURES:
        layers = ", ".join(f"`{name}`" for name in row.linears)
        yield f"| {row.title} | `{row.name}` | {layers} | {row.note} |"


def gguf() -> Iterator[str]:
    yield ", ".join(f"`{name}`" for name in ARCHITECTURES_OF_GGUF)


# --- putting them in -------------------------------------------------------------------------------------------------

TABLES: Mapping[str, Mapping[str, Callable[[], Iterator[str]]]] = {
    "cli.md": {"commands": commands},
    "recipe.md": {"recipe": recipe, "sources": lambda: kinds(SOURCES), "scorers": lambda: kinds(SCORERS)},
    "http.md": {"requests": requests, "errors": errors},
    "supported-models.md": {"decoders": decoders, "gguf": gguf},
}


def rewritten(name: str, text: str) -> str:
    """The document with every table as the code has it now."""
    for mark, rows in TABLES[name].items():
        made = "\n".join(rows()).strip()
        pattern = rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)"
        text, found = re.subn(pattern, lambda part: part[1] + "\n" + made + "\n" + part[2], text, flags=re.DOTALL)  # noqa: B023
        assert found == 1, f"{name} must have one <!-- {mark} --> … <!-- end -->"
    return text


if __name__ == "__main__":
    for document in TABLES:
        path = REFERENCE / document
        path.write_text(rewritten(document, path.read_text(encoding="utf-8")), encoding="utf-8")
