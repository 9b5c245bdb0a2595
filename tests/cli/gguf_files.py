"""A tiny model as a GGUF file, laid out as llama.cpp's converter does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from tests.chats import END, START, TURNS

TOKENS = (*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", START, END)
WITH_ITS_OWN = (*TOKENS, "<|endoftext|>")  # which the library's class for Qwen takes for granted
_CONTROLS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_LETTERS = ("▁", *"abcdefghijklmnopqrstuvwxyz", "ab")
SENTENCEPIECE = (*_CONTROLS, *(f"<0x{value:02X}>" for value in range(256)), *_LETTERS)  # as Gemma has it
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # kinds of tokens


def tokens_of(architecture: str) -> tuple[str, ...]:
    if architecture.startswith("gemma"):
        return SENTENCEPIECE
    return TOKENS if architecture == "llama" else WITH_ITS_OWN


def write_gguf(
    path: Path,
    base: Path,
    architecture: str,
    *,
    quantised: bool = False,
    template: str | None = TURNS,
    change: Callable[[Any], None] = lambda writer: None,
    without: str = "",
) -> Path:
    """The model of a checkpoint folder. `change` may add to the file, `without` is a tensor to leave out."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(base)
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    else:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    tokens = tokens_of(architecture)
    writer.add_token_list(list(tokens))
    writer.add_token_types([_kind(token) for token in tokens])
    if tokens is SENTENCEPIECE:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0 if token != "ab" else -1.0 for token in tokens])
        writer.add_unk_token_id(tokens.index("<unk>"))
        writer.add_pad_token_id(tokens.index("<pad>"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_merges(["a b"])
    ends = ("<bos>", "<eos>") if tokens is SENTENCEPIECE else (START, END)
    writer.add_bos_token_id(tokens.index(ends[0]))
    writer.add_eos_token_id(tokens.index(ends[1]))
    if template is not None:
        writer.add_chat_template(template)
    change(writer)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, end = name.rpartition(".")
        own = f"{names.get_name(stem)}.{end}"
        if own == without:
            continue
        values = tensor.float()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            values = _interleaved(values, head)
        if architecture.startswith("gemma") and "norm" in stem:
            values = values + 1
        array = values.contiguous().numpy()
        if quantised and array.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(own, gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(own, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _kind(token: str) -> int:
    if token == "<unk>":
        return _UNKNOWN
    if token.startswith("<0x"):
        return _BYTE
    return _CONTROL if len(token) > 2 else _NORMAL


def _interleaved(weight: torch.Tensor, head: int) -> torch.Tensor:
    """RoPE's halves as pairs: llama.cpp turns neighbours, transformers halves."""
    rows = weight.view(-1, 2, head // 2, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)
