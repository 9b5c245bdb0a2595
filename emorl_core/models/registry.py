"""The supported families, and the lookup of a checkpoint's family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emorl_core.errors import UnsupportedModel
from emorl_core.models.causal.family import CausalFamily
from emorl_core.models.config import read_config, refuse_quantised
from emorl_core.models.family import Family, TrainableModel
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.t5.family import T5Family

FAMILIES: tuple[Family, ...] = (T5Family(), CausalFamily())


def family_of(config: Mapping[str, Any]) -> Family:
    """The first family that takes this config. Raises UnsupportedModel with the reasons of all."""
    reasons = []
    for family in FAMILIES:
        reason = family.takes(config)
        if reason is None:
            return family
        reasons.append(reason)
    raise UnsupportedModel("; ".join(reasons))


def adapter_task(folder: Path) -> str:
    """PEFT's task type of adapters for this checkpoint. Raises UnsupportedModel."""
    return family_of(read_config(folder)).adapter_task


def load_model(
    folder: Path, *, device: torch.device, dtype: torch.dtype, training: bool = False, group: ProcessGroup | None = None
) -> TrainableModel:
    """Load a checkpoint folder (safetensors only).

    With `training` the base matrices stay usable by autograd. group: processes over which the model is split; all of
    them call this.

    Raises:
        UnsupportedModel: an architecture of no family here, or a checkpoint that cannot be read; says what works.
    """
    config = read_config(folder)
    family = family_of(config)
    refuse_quantised(config)
    return family.load(folder, config, device=device, dtype=dtype, training=training, group=group)
