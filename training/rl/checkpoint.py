"""Checkpoints of a run: tensors in safetensors, everything else in JSON, in a folder that is written atomically."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emorl_core.files.writing import appearing
from training.config import RecipeError

FORMAT = "emorl-training/2"
_TENSORS = "state.safetensors"
_STATE = "state.json"
_TORCH, _CUDA = "random.torch", "random.cuda"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to continue after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # JSON values; floats round-trip exactly


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/checkpoint-<step>`, with what `restore_process` needs, and drop older checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"checkpoint-{checkpoint.step}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    tensors[_TORCH] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[_CUDA] = torch.cuda.get_rng_state()
    ours = {"format": FORMAT, "step": checkpoint.step, "random": _python_random(), "threads": torch.get_num_threads()}
    state = {**ours, **checkpoint.state}
    with appearing(target, replace=True) as temporary:
        save_file(tensors, temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
    for path in [*(old for step, old in _found(folder) if step != checkpoint.step), *folder.glob(".checkpoint-*")]:
        shutil.rmtree(path)


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None. Raises `RecipeError` for another format."""
    found = _found(folder)
    if not found:
        return None
    step, path = found[-1]
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    if state.get("format") != FORMAT:
        raise RecipeError(f"{path}: format is {state.get('format')!r}; this version reads {FORMAT!r}", param="resume")
    return Checkpoint(step, load_file(path / _TENSORS), state)


def check_task(checkpoint: Checkpoint, fingerprint: Mapping[str, str], folder: Path) -> None:
    """Raises `RecipeError` unless the checkpoint in `folder` is of this recipe, data and base."""
    for key, value in fingerprint.items():
        if checkpoint.state["task"].get(key) != value:
            raise RecipeError(
                f"--resume: the checkpoint in {folder} is of another {key}; "
                "use the recipe and data it began with, or another --out",
                param="resume",
            )


def restore_process(checkpoint: Checkpoint) -> None:
    """The random states of torch, numpy and Python, since a user's scorer may draw from any of them; and the number of
    threads, which affects rounding."""
    torch.set_num_threads(checkpoint.state.get("threads", torch.get_num_threads()))
    torch.set_rng_state(checkpoint.tensors[_TORCH])
    if _CUDA in checkpoint.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.tensors[_CUDA])
    saved = checkpoint.state["random"]
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def _python_random() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)  # its type also covers generators other than the global one
    return {"python": random.getstate(), "numpy": [kind, keys.tolist(), position, has_gauss, cached]}


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints, oldest first; a folder gets its final name only when it is complete."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*")]
    return sorted((int(match[1]), path) for match, path in matches if match)
