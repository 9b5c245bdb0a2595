"""`--set key.key=value`: one value of a recipe from the command line."""

from __future__ import annotations

import re
from typing import Any

from emorl_core.errors import cut
from emorl_core.files.documents import parse_yaml
from emorl_core.files.reading import Unreadable
from training.config import RecipeError


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in the mapping, creating sections as needed; the value is YAML, and a number in the key is an
    index into a list.

    Raises `RecipeError` if it does not have that form or cannot be set; unknown keys are found when the recipe is
    validated.
    """
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise RecipeError(
            f"--set {cut(override)}: write it as key.key=value, for example rl.learning_rate=3e-4", param="set"
        )
    try:
        value = parse_yaml(text)
    except Unreadable as error:
        raise RecipeError(f"--set {key}: the value is not YAML: it {error.reason}", param="set") from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 reads 3e-4 as a string, since it has no dot
    *sections, last = key.split(".")
    place: Any = raw
    for section in sections:
        if isinstance(place, list) and section.isdigit() and int(section) < len(place):
            place = place[int(section)]
            continue
        if not isinstance(place, dict):
            raise RecipeError(f"--set {key}: {section!r} is inside a value that is not a mapping", param="set")
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"--set {key}: there is no such place in the recipe", param="set")
