"""Copies of a sound base with one thing changed, and what loading them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emorl_core.errors import UnsupportedModel
from emorl_core.models.registry import load_model
from emorl_core.models.t5.model import T5

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: bool) -> T5:
    model = load_model(folder, device=CPU, dtype=dtype, **options)
    assert isinstance(model, T5)
    return model


def refusal(folder: Path) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        load(folder)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    return caught.value.message


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    edit_json(folder / "config.json", change)
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder
