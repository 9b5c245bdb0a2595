"""Tiny real models, adapters and bundles, made in a second: what tests load instead of downloads.

`tiny_t5` writes a random T5 of either kind with its tokenizer, `tiny_adapter` a random LoRA folder made by PEFT itself,
`tiny_t5_bundle` a bundle of both. Everything is seeded: the same call writes the same bytes. For tests that need no
tensors, `emorl_core.fake.fake_ensemble` is faster still.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BaseRef, BundleSpec, ObjectiveSpec, write_spec
from emorl_core.bundles.profiles import ProfileSpec
from tests.made_once import contents, made_once

OBJECTIVES = ("reflection", "empathy", "fluency")
ALL_LINEAR = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")  # by name; PEFT ignores names that a kind does not have

_SPECIAL = ("<pad>", "</s>", "<unk>")
_WORDS = (
    "you feel it is hard to keep up with work and that hurts tired of being alone worried about your family sounds like"
    " there so much on mind want change but not sure how start hope part wonders whether things will get better i my me"
    " can't a the at home sleep night angry sad since left job mother friend school money doctor drink smoke again never"
    " always nobody listens help try give café naïve"
).split()
_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz.,?!'")
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_LAST_NORM = "decoder.final_layer_norm.weight"
_LOGIT_GAIN = {False: 16.0, True: 2.0}  # by kind: the tied head is scaled down by d_model ** -0.5
_END_GAIN = {False: 1.6, True: 1.2}
VOCABULARY = (*_SPECIAL, "[SEP]", *(f"▁{word}" for word in _WORDS), "▁", *_LETTERS, *_BYTES)

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # it warns about every untied head


@contextmanager
def outdated_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for `is_gradient_checkpointing`, which warns; that is theirs to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words, letters and UTF-8 bytes in T5's layout (`<pad>` 0, `</s>` 1, `<unk>` 2); any text encodes and round-trips."""
    pieces = [(piece, -1.0 if piece.startswith("▁") else -5.0) for piece in VOCABULARY]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["[SEP]"],
        clean_up_tokenization_spaces=False,
    )


def tiny_t5(folder: Path, *, gated: bool = False, seed: int = 0, **config: Any) -> Path:
    """Write a random T5 checkpoint and its tokenizer into `folder`, and return it.

    `gated` False is T5 v1.0 (ReLU, tied and scaled head), True is T5 1.1 (gated GELU, untied head). `config` overrides
    T5Config's fields. Weights are scaled so that greedy text varies from token to token and seldom ends at once:
    Hugging Face's own initialisation repeats the last token for ever.
    """
    return made_once(
        ("t5", gated, seed, sorted(config.items())),
        folder,
        lambda new: _write_t5(new, gated=gated, seed=seed, config=config),
    )


def _write_t5(folder: Path, *, gated: bool, seed: int, config: Mapping[str, Any]) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, **config}
    hf_config = T5Config(
        vocab_size=len(VOCABULARY),
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **sizes,
    )
    model = T5ForConditionalGeneration(hf_config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if gated:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        for name, parameter in model.named_parameters():
            if name.endswith("layer_norm.weight"):
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((0.5 + noise) * (_LOGIT_GAIN[gated] if name == _LAST_NORM else 1.0))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _spread(name, parameter, gated))
        head = model.lm_head.weight if gated else model.shared.weight
        head[len(VOCABULARY) - len(_BYTES) :] *= 0.6  # mostly words, bytes now and then
        head[1] *= _END_GAIN[gated]  # the end of sequence comes, sooner or later
    if not gated:
        model.lm_head.weight = model.shared.weight
    model.save_pretrained(folder)
    if gated:  # as published T5 1.1 checkpoints say it; transformers 5 writes `scale_decoder_outputs` instead
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del written["scale_decoder_outputs"]
        (folder / "config.json").write_text(json.dumps({**written, "tie_word_embeddings": False}), encoding="utf-8")
    tiny_tokenizer().save_pretrained(folder)


def _spread(name: str, parameter: torch.Tensor, gated: bool) -> float:
    """Standard deviation of a parameter's entries. Layers must outweigh the residual, or the last token repeats; much
    more, and rounding errors grow from layer to layer until two right implementations disagree."""
    if "relative_attention_bias" in name:
        return 3.0
    if name in ("shared.weight", "lm_head.weight"):
        return 0.1
    gains = {"q": 0.5, "v": 1.0, "o": 1.0, "wo": 1.5} if gated else {"q": 1.0, "v": 2.0, "o": 2.0, "wo": 3.0}
    return gains.get(name.split(".")[-2], 1.0) * parameter.shape[1] ** -0.5


def tiny_adapter(
    base_folder: Path,
    out: Path,
    rank: int,
    alpha: float,
    seed: int,
    targets: Sequence[str] | str = ALL_LINEAR,
    **options: Any,
) -> Path:
    """Write a random LoRA folder for `base_folder` with PEFT, both factors random, and return `out`.

    `options` are LoraConfig's (`rank_pattern`, `use_rslora`, `layers_to_transform`, ...).
    """
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": "SEQ_2_SEQ_LM",
        **options,
    }
    made_once(
        ("t5 adapter", contents(base_folder), seed, sorted(settings.items())),
        out,
        lambda new: _write_adapter(base_folder, new, seed, LoraConfig(**settings)),
    )
    return named_base(out, base_folder)


def named_base(adapter: Path, base: Path) -> Path:
    """An adapter that says it was made for the base in this folder; PEFT writes the path that it was given."""
    config = adapter / "adapter_config.json"
    written = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**written, "base_model_name_or_path": str(base)}, indent=2), encoding="utf-8")
    return adapter


def _write_adapter(base_folder: Path, out: Path, seed: int, config: LoraConfig) -> None:
    base = T5ForConditionalGeneration.from_pretrained(base_folder)
    with outdated_peft():
        model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                spread = 0.5 * parameter.shape[-1] ** -0.5 if "lora_A" in name else 0.25
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    model.save_pretrained(out)


def tiny_t5_bundle(
    folder: Path,
    *,
    gated: bool = False,
    ranks: Sequence[int] = (2, 4, 8),
    objectives: Sequence[str] = OBJECTIVES,
    seed: int = 0,
    name: str = "tiny",
    max_source_tokens: int = 64,
    adapter_options: Mapping[str, Mapping[str, Any]] | None = None,
    scorers: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle that loads and serves, and return its folder: a tiny T5 and one random adapter per objective, of
    ranks `ranks` and alpha twice the rank. Profiles: `balanced` (the default, even) and one per objective.

    `adapter_options`: objective -> more arguments of `tiny_adapter`.
    """
    base = tiny_t5(folder / BASE_DIR, gated=gated, seed=seed)
    for number, (objective, rank) in enumerate(zip(objectives, ranks, strict=True), start=1):
        options = (adapter_options or {}).get(objective, {})
        tiny_adapter(base, folder / ADAPTERS_DIR / objective, rank, 2.0 * rank, seed + number, **options)
    profiles = {"balanced": ProfileSpec(weights=dict.fromkeys(objectives, 1.0), origin={"by": "tests"})}
    profiles |= {objective: ProfileSpec(weights={objective: 1.0}) for objective in objectives}
    spec = BundleSpec(
        name=name,
        base=BaseRef(path=BASE_DIR),
        prompt_template="{prompt} [SEP] ",
        max_source_tokens=max_source_tokens,
        objectives={o: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{o}", description=f"random {o}") for o in objectives},
        profiles=profiles,
        default_profile="balanced",
        scorers=dict(scorers or {}),
    )
    write_spec(folder, spec)
    return folder
