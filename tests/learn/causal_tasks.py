"""A tiny decoder-only base with a tokenizer and a chat template, and recipes on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.learn.trainer_tasks import NAMES, TEXTS, tiny_recipe
from tests.supported_models import tiny_causal
from training.recipe.recipe import Recipe

START, END = "<|im_start|>", "<|im_end|>"
TURNS = (  # ChatML, with a system prompt of its own, as SmolLM2 has it
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nHidden.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = (  # no header for the reply, as Llama 2 and Mistral have it
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|im_end|>' }}"
    "{% else %}{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}"
)
SYSTEM = "Be kind."
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def chat_tokenizer(template: str | None = TURNS) -> PreTrainedTokenizerFast:
    """The characters that a keyboard has, then the two control tokens. All others are dropped."""
    alphabet = ["Ċ", "Ġ", *map(chr, range(33, 127))]  # as GPT-2 writes a new line and a space
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (START, END)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    if template is not None:
        fast.chat_template = template
    return fast


def tiny_chat_base(folder: Path, *, template: str | None = TURNS, **config: Any) -> Path:
    """Write a random Llama that mostly says letters, and its tokenizer, into `folder`, and return it."""
    tokenizer = chat_tokenizer(template)
    end = tokenizer.convert_tokens_to_ids(END)
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": None, "pad_token_id": None}
    tiny_causal(folder, "llama", **{"max_position_embeddings": 256, "num_hidden_layers": 2, **sizes, **config})
    weights = load_file(folder / "model.safetensors")
    said = torch.zeros(len(tokenizer), 1)
    said[tokenizer.encode(LETTERS)] = 1.0
    said[end] = 1.5
    weights["lm_head.weight"] *= 0.3 + 0.7 * said
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def causal_recipe(names: tuple[str, ...] = NAMES, **values: Any) -> Recipe:
    """As `tiny_recipe`, on chats with a system message unless `values` say otherwise."""
    chat = {} if "prompt_template" in values else {"chat": {"system": SYSTEM}}
    return tiny_recipe(names, **{**chat, **values})


def write_causal_recipe(folder: Path, rows: list[Mapping[str, str]] | None = None, **values: Any) -> Path:
    """A recipe file beside a tiny base and 24 prompts."""
    if not (folder / "base").exists():
        tiny_chat_base(folder / "base")
    rows = rows or [{"prompt": f"{text} {number}"} for number in range(3) for text in TEXTS]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    raw = causal_recipe(**values).model_dump(mode="json")
    raw["objectives"] = {
        name: {"scorer": {"kind": "callable", "path": f"tests.learn.trainer_tasks:{name}_score"}}
        for name in raw["objectives"]
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path
