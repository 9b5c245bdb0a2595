"""Adapter folders to be spoilt, and what is then said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from emorl_core.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE, read_peft
from emorl_core.errors import AdapterError

Q = "encoder.block.0.layer.0.SelfAttention.q"
KEY = f"base_model.model.{Q}.lora_A.weight"


def refusal(folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read_peft(folder, "empathy")
    message = caught.value.message
    assert "'empathy'" in message, "the adapter is named"
    assert "\n" not in message
    assert str(folder.parent) not in message
    return message


def edit_config(folder: Path, **values: object) -> Path:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder
