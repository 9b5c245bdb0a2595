"""The sizes and variants of a T5 checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emorl_core.errors import UnsupportedModel, cut
from emorl_core.models.config import whole_number


@dataclass(frozen=True, slots=True)
class T5Config:
    """The parts of a Hugging Face T5 config that are used here."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    buckets: int
    max_distance: int
    epsilon: float
    gated: bool
    scaled_head: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> T5Config:
        """Raises UnsupportedModel, naming the key, if a value is missing or not supported."""
        projection = config.get("feed_forward_proj", "relu")
        if projection not in ("relu", "gated-gelu"):
            raise UnsupportedModel(f"config.json: feed_forward_proj is {cut(projection)}; allowed: relu, gated-gelu")
        heads = config.get("architectures") or ["T5ForConditionalGeneration"]
        if not isinstance(heads, list) or not any(str(name).endswith("ForConditionalGeneration") for name in heads):
            raise UnsupportedModel(
                f"config.json: architectures is {cut(heads)}; allowed: one with a language-model head"
            )
        epsilon = config.get("layer_norm_epsilon", 1e-6)
        if not isinstance(epsilon, (int, float)) or isinstance(epsilon, bool) or not 0 <= epsilon < 1:
            raise UnsupportedModel(f"config.json: layer_norm_epsilon is {cut(epsilon)}; allowed: a small number")
        # transformers 5 writes scale_decoder_outputs and always ties; earlier versions did not scale an untied head.
        scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False)
        # mT5's head is separate and never scaled, whatever transformers 5 writes.
        scaled = scaled and config.get("model_type") != "mt5"
        layers = whole_number(config, "num_layers")
        return cls(
            vocab_size=whole_number(config, "vocab_size"),
            d_model=whole_number(config, "d_model"),
            d_kv=whole_number(config, "d_kv"),
            d_ff=whole_number(config, "d_ff"),
            num_layers=layers,
            num_decoder_layers=whole_number(config, "num_decoder_layers", layers),
            num_heads=whole_number(config, "num_heads"),
            buckets=whole_number(config, "relative_attention_num_buckets", 32),
            max_distance=whole_number(config, "relative_attention_max_distance", 128),
            epsilon=epsilon,
            gated=projection == "gated-gelu",
            scaled_head=bool(scaled),
        )

    @property
    def inner(self) -> int:
        return self.num_heads * self.d_kv
