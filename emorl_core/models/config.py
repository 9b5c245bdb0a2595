"""Reads the JSON files of a checkpoint folder and their required values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emorl_core.errors import UnsupportedModel, cut
from emorl_core.files.documents import read_json
from emorl_core.files.reading import Missing, Unreadable

_MOST_BYTES = 2**24

# Where config.json says that the weights are quantised: transformers' key, those of other libraries, and the switches
# that older releases of bitsandbytes left.
_QUANTISED = (
    "quantization_config",
    "quantization",
    "quant_config",
    "compression_config",
    "load_in_8bit",
    "load_in_4bit",
)
_METHODS = ("quant_method", "quant_algo", "format", "quant_type", "mode")  # where those name the method


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """`config.json`, or another JSON object of a checkpoint folder."""
    path = folder / name
    try:
        config = read_json(path, most=_MOST_BYTES, unique=False)
    except Missing:
        raise UnsupportedModel(f"{folder}: no {name}; a base is a Hugging Face checkpoint folder") from None
    except Unreadable as error:
        raise UnsupportedModel(error.message) from None
    if not isinstance(config, dict):
        raise UnsupportedModel(f"{path}: must be a JSON object")
    return config


def whole_number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size, from 1 up. Null counts as missing. Raises UnsupportedModel naming the key and the value."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise UnsupportedModel(f"config.json: key {key!r} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"config.json: {key} is {cut(value)}; allowed: a whole number from 1")
    return value


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Packed weights need their library's arithmetic; read as plain numbers they are noise.

    Raises:
        UnsupportedModel: names the key and the method.
    """
    for key in _QUANTISED:
        if value := config.get(key):
            raise UnsupportedModel(
                f"config.json: {key} says that the weights are quantised ({_method(key, value)}); allowed: plain"
                " float32, float16 or bfloat16 weights"
            )


def _method(key: str, value: object) -> str:
    if not isinstance(value, dict):
        return key if value is True else cut(value)
    named = [cut(value[word]) for word in _METHODS if value.get(word)]
    switches = [word for word in ("load_in_8bit", "load_in_4bit") if value.get(word)]
    return ", ".join(named + switches) or "method not named"
