"""A tiny chat model: a llama that talks in bytes, with a chat template, and the bundle around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from emorl_core.bundles.bundle import BASE_DIR, BaseRef, BundleSpec, ChatSpec, ObjectiveSpec, write_spec
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.text.chat import Message
from tests.supported_models import tiny_causal, tiny_causal_adapter

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HIDDEN = (  # as SmolLM2 and Qwen2.5 have it
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a hidden one.<|im_end|>\n' }}{% endif %}"
)
START, END, BOS, THINK = "<|im_start|>", "<|im_end|>", "<s>", "<think>"
ENDS = (1, 258)  # of a turn, in the tiny bundle


def tokenizer_of(template: str | None, *, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """Bytes, 256 of them, and control tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=normalizer is not None) for name in (BOS, START, END)]
    )
    tokenizer.add_tokens([AddedToken(THINK, special=False, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=END)
    if template is not None:
        fast.chat_template = template
    return fast


def library(tokenizer: PreTrainedTokenizerFast, chat: Sequence[Message]) -> list[int]:
    """The chat as transformers renders it."""
    conversation = [{"role": m.role, "content": m.text} for m in chat]
    found = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert isinstance(found, list)
    return found


def tiny_chat_bundle(
    folder: Path, *, chat: ChatSpec | None = None, template: str = HIDDEN + TURNS, context: int = 256, **fields: Any
) -> Path:
    """With the adapter `one`, and two ends of a turn. context: in tokens; fields: of `BundleSpec`."""
    base = tiny_causal(folder / BASE_DIR, "llama", vocab_size=260, max_position_embeddings=context)
    tokenizer_of(template).save_pretrained(base)
    tiny_causal_adapter(base, folder / "adapters" / "one", 2, 1, "all-linear")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ENDS)}), encoding="utf-8")
    spec: dict[str, Any] = {
        "name": "chat",
        "base": BaseRef(path=BASE_DIR),
        "chat": chat or ChatSpec(),
        "objectives": {"one": ObjectiveSpec(adapter="adapters/one")},
        "profiles": {"half": ProfileSpec(weights={"one": 0.5, "base": 0.5})},
        "default_profile": "half",
    }
    write_spec(folder, BundleSpec.model_validate({**spec, **fields}))
    return folder
