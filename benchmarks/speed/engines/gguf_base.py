"""A random decoder-only checkpoint and its adapters as GGUF files for llama.cpp: the same weights, in the formats to be
measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from emorl_core.adapters.adapter import Adapter, read_peft
from emorl_core.bundles.bundle import Bundle
from emorl_core.files.writing import replacing

FORMATS = {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0"}  # of the matrices; norms and biases are float32
_ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2"}
_TOKENIZER = "tokenizer.json"


def write_gguf(base: Path, dtype: str) -> Path:
    """Write a checkpoint folder of `benchmarks.make_bundle` as a file beside it, only once. `dtype`: a key of
    `FORMATS`."""
    base = base.resolve()
    out = base.with_name(f"{base.name}-{dtype}.gguf")
    if not out.exists():
        with replacing(out) as temporary:
            _write(temporary, base, dtype)
    return out


def _write(path: Path, base: Path, dtype: str) -> None:
    import gguf
    from safetensors import safe_open

    config = _config(base)
    kind = gguf.MODEL_ARCH[_ARCHITECTURES[config["model_type"]]]
    layers, heads, head = config["num_hidden_layers"], config["num_attention_heads"], _head(config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokens(writer, base)
    names = gguf.get_tensor_name_map(kind, layers)
    matrix, other = gguf.GGMLQuantizationType[FORMATS[dtype]], gguf.GGMLQuantizationType.F32
    with safe_open(base / "model.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            stem, _, end = name.rpartition(".")
            values = tensors.get_tensor(name).float()
            if config["model_type"] == "llama" and stem.endswith(("q_proj", "k_proj")):
                values = _interleaved(values, head)
            how = matrix if values.ndim == 2 else other
            array = np.ascontiguousarray(values.numpy())
            writer.add_tensor(f"{names.get_name(stem)}.{end}", gguf.quants.quantize(array, how), raw_dtype=how)
    _finish(writer)


def write_gguf_adapters(bundle: Bundle) -> list[Path]:
    """Write each objective's LoRA weights as a file beside its folder, only once, in float32."""
    config = _config(bundle.base_folder())
    found = []
    for name in bundle.spec.objectives:
        folder = bundle.adapter_folder(name).resolve()
        out = folder.with_name(f"{folder.name}.gguf")
        if not out.exists():
            with replacing(out) as temporary:
                _write_adapter(temporary, read_peft(folder, name), config)
        found.append(out)
    return found


def _write_adapter(path: Path, adapter: Adapter, config: dict[str, Any]) -> None:
    import gguf

    kind = gguf.MODEL_ARCH[_ARCHITECTURES[config["model_type"]]]
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # no scale but the request's
    for module, pair in adapter.modules.items():
        b = pair.b.float() * pair.scale
        if config["model_type"] == "llama" and module.endswith(("q_proj", "k_proj")):
            b = _interleaved(b, _head(config))
        stem = names.get_name(module)
        writer.add_tensor(f"{stem}.weight.lora_a", np.ascontiguousarray(pair.a.float().numpy()))
        writer.add_tensor(f"{stem}.weight.lora_b", np.ascontiguousarray(b.numpy()))
    _finish(writer)


def _config(base: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return found


def _head(config: dict[str, Any]) -> int:
    """Dimensions of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: Any, base: Path) -> None:
    """Add the checkpoint's byte-level tokenizer. Prompts are token ids, so merges are never used, but llama.cpp needs a
    non-empty list of them."""
    import gguf

    vocabulary = json.loads((base / _TOKENIZER).read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token.startswith("<") and len(token) > 1 else normal for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary["</s>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_add_bos_token(False)


def _interleaved(weight: Tensor, head: int) -> Tensor:
    """Permute rows of q or k from RoPE's halves to pairs: llama.cpp rotates adjacent dimensions of a head, transformers
    its two halves."""
    rows = weight.view(-1, 2, head // 2, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)
