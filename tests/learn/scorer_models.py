"""Tiny random models on disk for the scorer tests: classifiers, encoders and language models, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from emorl_core.scorers.judge import NUMBERS

WORDS = (
    "i you my your we feel am are sad angry tired alone work boss sleep drink because and when it is sounds like hard"
    " want to can not never why do should try go the a of with that makes sense doctor mother home new old red blue"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
LONGEST = 64  # positions of every model here


def tokenizer(*, pairs: bool = True, start: bool = True) -> PreTrainedTokenizerFast:
    """Words and single letters. `pairs`: BERT's [CLS] a [SEP] b [SEP]; else T5's a </s>."""
    letters = "abcdefghijklmnopqrstuvwxyz.,?!'"
    vocabulary = [*SPECIAL, *WORDS, *(letter for letter in letters if letter not in WORDS)]
    vocabulary += [f"##{letter}" for letter in letters]
    made = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if pairs:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    else:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 4)])
    extra = {"bos_token": "[CLS]"} if start and not pairs else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", model_max_length=LONGEST, **extra
    )


def bert_config(**changes: object) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(vocab_size=len(tokenizer()), max_position_embeddings=LONGEST, **sizes, **changes)


def classifier(folder: Path, labels: list[str], *, seed: int = 0, spread: float = 4.0) -> Path:
    """A sequence classifier whose logits differ from text to text."""
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    model = BertForSequenceClassification(bert_config(num_labels=len(labels), id2label=names))
    with torch.no_grad():
        model.classifier.weight.normal_(std=spread)
        model.classifier.bias.normal_()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def encoder(folder: Path, *, seed: int = 0) -> Path:
    """A bare encoder: its checkpoint has no head."""
    torch.manual_seed(seed)
    BertModel(bert_config()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def causal(folder: Path, *, seed: int = 0, start: bool = True) -> Path:
    """A GPT-2. `start`: its tokenizer knows a token that begins every text."""
    torch.manual_seed(seed)
    words = tokenizer(pairs=False, start=start)
    config = GPT2Config(
        vocab_size=len(words), n_positions=LONGEST, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def seq2seq(folder: Path, *, seed: int = 0) -> Path:
    """A T5."""
    torch.manual_seed(seed)
    words = tokenizer(pairs=False)
    config = T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight.mul_(8)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def judge(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Weights of a judge for `causal`; `changes`: other tensors, or None for one that is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    size = 2 * 16 + NUMBERS
    tensors = {"mean": torch.zeros(size), "spread": torch.ones(size), "inner": torch.randn(4, size)}
    held = tensors | {"inner_bias": torch.zeros(4), "outer": torch.randn(4)} | changes
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps({"format": "emorl-judge/1", "dtype": "float32"}))
    (folder / "calibration.json").write_text(json.dumps({"kind": "platt", "slope": 0.1, "intercept": 0.0}))
    return folder
