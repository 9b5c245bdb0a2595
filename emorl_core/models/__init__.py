"""One file per architecture family, each ending at hidden states with the head as its own method.

`LaneModel` is what the engine asks of a model; `load_model` finds the file for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from emorl_core.adapters import Adapter
from emorl_core.documents import read_json
from emorl_core.errors import UnsupportedModel
from emorl_core.files import Missing, Unreadable
from emorl_core.kv_cache import KVCache, Memory

# model_type in config.json -> module with `load(folder, config, device, dtype, training) -> LaneModel`
REGISTRY: dict[str, str] = {
    "t5": "emorl_core.models.t5",
    "mt5": "emorl_core.models.t5",
}
_MOST_CONFIG = 2**24  # bytes
WORKS = "T5 v1.0 (t5-small ... t5-11b), T5 1.1, FLAN-T5 and mT5, with a language-model head"


class LaneModel(Protocol):
    """A base model with stacked adapters. Letters: M lane rows, q new tokens a row, D hidden, V vocabulary."""

    architecture: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    decoder_start_token_id: int
    max_positions: int | None  # None: the positions are relative, any length runs
    device: torch.device
    dtype: torch.dtype
    adapters: tuple[str, ...]  # names of the stacked adapters; lane i > 0 uses adapters[i - 1]

    @property
    def compiled(self) -> bool:
        """Whether `compile_step` is in force: sums may then round differently."""

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        """Stack these adapters; they must fit (raises AdapterError). With `training` they require gradients."""

    def compile_step(self) -> None:
        """Make `step` faster for the adapters attached now, at the cost of time here. Raises UnsupportedModel."""

    def new_cache(self) -> KVCache:
        """An empty cache for this model's shapes."""

    def prefill(self, prompts: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[Memory]:
        """Run the prompts, prompt i in lane lanes[i], and return what decoding needs of each."""

    def step(self, tokens: Tensor, lanes: Tensor, cache: KVCache) -> Tensor:
        """Feed tokens [M, q] to the cache's rows, row m in lane lanes[m] [M]; returns last hidden states [M, q, D]."""

    def head(self, hidden: Tensor) -> Tensor:
        """[B, D] -> logits [B, V] float32. Any scale of the architecture belongs here."""

    def head_rows(self, token_ids: Tensor) -> Tensor:
        """[...] -> the head's rows [..., D] float32, scale included: logit = row . hidden."""

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}"""


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """`config.json`, or another JSON object of a checkpoint folder."""
    path = folder / name
    try:
        config = read_json(path, most=_MOST_CONFIG, unique=False)
    except Missing:
        raise UnsupportedModel(f"{folder}: no {name}; a base is a Hugging Face checkpoint folder") from None
    except Unreadable as error:
        raise UnsupportedModel(error.message) from None
    if not isinstance(config, dict):
        raise UnsupportedModel(f"{path}: must be a JSON object")
    return config


def load_model(folder: Path, *, device: torch.device, dtype: torch.dtype, training: bool = False) -> LaneModel:
    """Load a checkpoint folder (safetensors only).

    With `training` the base matrices stay usable by autograd.

    Raises:
        UnsupportedModel: an architecture without a file here, or a checkpoint that cannot be read; says what works.
    """
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in REGISTRY:
        raise UnsupportedModel(f"base model_type is {kind!r}, which is not supported; what works: {WORKS}")
    load: Callable[..., LaneModel] = import_module(REGISTRY[kind]).load
    return load(folder, config, device=device, dtype=dtype, training=training)
