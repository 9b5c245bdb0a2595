"""Decoder-only language models: which checkpoints can be loaded, their sizes, and loading them.

transformers' modelling code takes seconds to import and a T5 base does not need it, hence the imports within functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emorl_core.errors import UnsupportedModel
from emorl_core.models.shape import Shape
from emorl_core.models.special_tokens import end_tokens

if TYPE_CHECKING:
    from emorl_core.models.causal.model import CausalModel
    from emorl_core.models.parallel.group import ProcessGroup


class CausalFamily:
    """See `emorl_core.models.family.Family`."""

    name = "causal"
    adapter_task = "CAUSAL_LM"
    size_keys: tuple[str, ...] = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    )

    def takes(self, config: Mapping[str, Any]) -> str | None:
        from emorl_core.models.causal import admission

        try:
            admission.refuse_files(config)
            admission.refuse_config(admission.parsed(config))
        except UnsupportedModel as error:
            return error.message
        return None

    def shape(self, config: Mapping[str, Any]) -> Shape:
        from emorl_core.models.causal.sizes import shape_of

        return shape_of(config)

    def end_tokens(self, folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
        return end_tokens(folder, config)

    def load(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        training: bool,
        group: ProcessGroup | None,
    ) -> CausalModel:
        from emorl_core.models.causal.load import load

        return load(folder, config, device=device, dtype=dtype, training=training, group=group)
