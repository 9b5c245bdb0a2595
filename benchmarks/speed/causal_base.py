"""Random decoder-only checkpoints of published shapes, for the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from emorl_core.files.writing import follow_umask

# From the public configs; weights are random, and special tokens are those of `benchmarks.make_bundle`'s tokenizer.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "llama-tiny": {  # not a published model; for tests of the benchmarks
        "model_type": "llama",
        "vocab_size": 32128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}
_SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


def config_of(shape: str, **changes: Any) -> Any:
    """transformers' config for this shape; changes: other values for some fields."""
    from transformers import AutoConfig

    options = SHAPES[shape] | _SPECIAL | changes
    return AutoConfig.for_model(options.pop("model_type"), **options)


def write_weights(folder: Path, shape: str, *, seed: int = 0) -> None:
    """Write `config.json` and `model.safetensors`, in bfloat16 like published checkpoints."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    follow_umask(folder / "model.safetensors")


def linear_shapes(shape: str) -> dict[str, tuple[int, int]]:
    """Linear layer -> (out, in), for all layers that adapters can be on."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    head = model.get_output_embeddings()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
