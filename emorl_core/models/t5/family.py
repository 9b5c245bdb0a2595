"""T5 v1.0 and 1.1, FLAN-T5 and mT5: which checkpoints can be loaded, their sizes, and loading them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emorl_core.errors import UnsupportedModel
from emorl_core.models.checkpoint import Checkpoint
from emorl_core.models.family import Facts
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.shape import LinearShape, Shape, TokenCost
from emorl_core.models.special_tokens import decoder_start, end_tokens
from emorl_core.models.t5.compiled import compilation
from emorl_core.models.t5.config import T5Config
from emorl_core.models.t5.graphs import graphs
from emorl_core.models.t5.model import T5

# Written by the first converters; cross-attention has no positions, and transformers ignores it too.
_HARMLESS = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_END = 1  # transformers' default if no file has one


class T5Family:
    """See `emorl_core.models.family.Family`."""

    name = "t5"
    adapter_task = "SEQ_2_SEQ_LM"
    size_keys: tuple[str, ...] = (
        "d_model",
        "d_ff",
        "d_kv",
        "num_heads",
        "num_layers",
        "num_decoder_layers",
        "vocab_size",
        "feed_forward_proj",
    )

    def takes(self, config: Mapping[str, Any]) -> str | None:
        kind = config.get("model_type")
        if isinstance(kind, str) and kind in ("t5", "mt5"):
            return None
        works = "T5 v1.0 (t5-small ... t5-11b), T5 1.1, FLAN-T5 and mT5, with a language-model head"
        return f"base model_type is {kind!r}, which is not supported; what works: {works}"

    def shape(self, config: Mapping[str, Any]) -> Shape:
        t5 = T5Config.from_hf(config)
        d, inner, ff = t5.d_model, t5.inner, t5.d_ff
        attentions = t5.num_layers + 2 * t5.num_decoder_layers
        layers = t5.num_layers + t5.num_decoder_layers
        linears = (
            *(LinearShape(name, d, inner, attentions) for name in "qkv"),
            LinearShape("o", inner, d, attentions),
            *(LinearShape(name, d, ff, layers) for name in (("wi_0", "wi_1") if t5.gated else ("wi",))),
            LinearShape("wo", ff, d, layers),
        )
        # Kept for the backward pass, per token and layer: inputs of the norms and products, q, k, v, the hidden layer
        # twice (before and after its activation), and the adapters' low-rank columns.
        attention = 3 * d + 4 * inner
        feed_forward = 3 * d + (4 if t5.gated else 2) * ff
        keys_and_values = t5.num_decoder_layers * 2 * inner
        return Shape(
            hidden=d,
            vocabulary=t5.vocab_size,
            tied=bool(config.get("tie_word_embeddings", True)),
            linears=linears,
            prompt=TokenCost(
                activations=t5.num_layers * (attention + feed_forward),
                adapted=t5.num_layers * 7,
                keys_and_values=keys_and_values,
                trained_keys_and_values=2 * keys_and_values,
            ),
            reply=TokenCost(
                activations=t5.num_decoder_layers * (2 * attention + feed_forward),
                adapted=t5.num_decoder_layers * 12,
                keys_and_values=keys_and_values,
            ),
        )

    def end_tokens(self, folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
        return end_tokens(folder, config, _END)

    def load(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        training: bool,
        group: ProcessGroup | None,
    ) -> T5:
        if group is not None:
            raise UnsupportedModel(
                f"base model_type 't5' cannot be held in parts by {group.size} processes; allowed: one process, or a "
                "decoder-only base"
            )
        sizes, start = T5Config.from_hf(config), decoder_start(folder, config)
        facts = Facts(
            architecture=self.name,
            vocab_size=sizes.vocab_size,
            eos_token_ids=self.end_tokens(folder, config),
            max_positions=None,  # relative positions
            device=device,
            dtype=dtype,
        )
        checkpoint = Checkpoint(folder, config, device=device, dtype=dtype)
        with torch.no_grad():
            model = T5(
                sizes,
                checkpoint,
                facts,
                start_token_id=start,
                compilations={"cpu": compilation, "cuda": graphs},
            )
            checkpoint.refuse_unread(_HARMLESS)
            for _, layer in model.linears():
                layer.base.pack(keep_plain=training)
        return model
