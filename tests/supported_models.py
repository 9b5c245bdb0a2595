"""Decoder-only architectures that the golden tests hold against Hugging Face and PEFT, each as a tiny random model.

The table is the one place that names them: the goldens run it, and the documentation's list is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.builders import named_base, outdated_peft
from tests.made_once import contents, made_once

VOCABULARY = 96
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_HEAD_8 = {**_SMALL, "head_dim": 8}
_WINDOW = 6  # shorter than every prompt of the tests but one
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": _WINDOW}
_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_LLAMA = (*_QKVO, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Architecture:
    """One row of the table. `linears` are the layers that adapters may change, by their last name."""

    name: str  # model_type
    title: str
    config: Mapping[str, Any]
    linears: Sequence[str] = _LLAMA
    note: str = ""
    fan_in_fan_out: bool = False
    experts: bool = False  # PEFT's all-linear would reach them


ARCHITECTURES = (
    Architecture("llama", "Llama, SmolLM2", _SMALL | {"attention_bias": True}),
    Architecture("mistral", "Mistral", _HEAD_8 | {"sliding_window": _WINDOW}, note="sliding window"),
    Architecture("qwen2", "Qwen2, Qwen2.5", _SMALL | {"tie_word_embeddings": True}, note="biases on q, k and v"),
    Architecture("qwen3", "Qwen3", _HEAD_8, note="norms on q and k"),
    Architecture("gemma", "Gemma", _HEAD_8),
    Architecture(
        "gemma2",
        "Gemma 2",
        _HEAD_8 | _ALTERNATING | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        note="sliding window, capped scores; logits are capped after mixing",
    ),
    Architecture("gemma3_text", "Gemma 3 (text)", _HEAD_8 | _ALTERNATING, note="sliding window, RoPE by layer type"),
    Architecture("smollm3", "SmolLM3", _SMALL | {"no_rope_layers": [1, 1, 0]}, note="layers without RoPE"),
    Architecture(
        "phi3", "Phi-3, Phi-4-mini", _SMALL, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), "fused layers"
    ),
    Architecture("olmo2", "OLMo 2", _SMALL),
    Architecture(
        "granite",
        "Granite 3",
        _SMALL
        | {"logits_scaling": 0.3, "residual_multiplier": 0.7, "attention_multiplier": 0.2, "embedding_multiplier": 3.0},
        note="scaled logits",
    ),
    Architecture(
        "cohere2", "Command R7B", _HEAD_8 | _ALTERNATING | {"logit_scale": 2.5}, note="sliding window, scaled logits"
    ),
    Architecture(
        "gpt2",
        "GPT-2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        ("c_attn", "c_proj", "c_fc"),
        "transposed layers",
        fan_in_fan_out=True,
    ),
    Architecture(
        "gpt_neox",
        "GPT-NeoX, Pythia",
        _SMALL | {"rotary_pct": 0.5},
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        "fused layers",
    ),
    Architecture(
        "opt",
        "OPT",
        _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 16},
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        "learned positions",
    ),
    Architecture(
        "starcoder2", "StarCoder2", _SMALL | {"sliding_window": _WINDOW}, (*_QKVO, "c_fc", "c_proj"), "sliding window"
    ),
    Architecture(
        "gpt_oss",
        "gpt-oss",
        _HEAD_8 | _ALTERNATING | {"num_local_experts": 4, "num_experts_per_tok": 2},
        _QKVO,
        "attention sinks, sliding window; adapters on attention",
    ),
    Architecture(
        "mixtral",
        "Mixtral",
        _SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
        _QKVO,
        "adapters on attention",
        experts=True,
    ),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def tiny_causal(folder: Path, name: str, *, seed: int = 0, **config: Any) -> Path:
    """Write a random model of this architecture into `folder`, and return it. `config` overrides the table's.

    Weights are spread so that greedy text varies from token to token.
    """
    row = BY_NAME.get(name)
    options = {**(_SMALL if row is None else row.config), **config}
    key = ("causal", name, seed, sorted(options.items()))
    return made_once(key, folder, lambda new: _write_causal(new, name, seed, options))


def _write_causal(folder: Path, name: str, seed: int, options: Mapping[str, Any]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options), attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(noise * 0.2)
    model.save_pretrained(folder)


def tiny_causal_adapter(
    base: Path, out: Path, rank: int, seed: int, targets: Sequence[str] | str, **options: Any
) -> Path:
    """Write a random LoRA folder for `base` with PEFT, and return `out`. `options` are LoraConfig's."""
    chosen = targets if isinstance(targets, str) else list(targets)
    settings = {"r": rank, "target_modules": chosen, "lora_alpha": 2.0 * rank, "task_type": "CAUSAL_LM", **options}
    key = ("causal adapter", contents(base), seed, sorted(settings.items()))
    made_once(key, out, lambda new: _write_causal_adapter(base, new, seed, LoraConfig(**settings)))
    return named_base(out, base)


def _write_causal_adapter(base: Path, out: Path, seed: int, config: LoraConfig) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    with outdated_peft():
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                spread = parameter.shape[-1] ** -0.5 if "lora_A" in name else 0.25
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    adapted.save_pretrained(out)
