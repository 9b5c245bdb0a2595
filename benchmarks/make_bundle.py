"""Write a bundle of a published shape with random weights, without any download.

    python -m benchmarks.make_bundle --shape t5-base --objectives 3 --rank 8 --out runs/t5-base

Its texts are random; its speed and memory are those of the real model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.speed import causal_base
from benchmarks.speed.workload import EOS
from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.adapters.writer import write_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BaseRef, BundleSpec, ObjectiveSpec, write_spec
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.files.writing import follow_umask

# From the public configs of google-t5/t5-*: d_model, d_kv, d_ff, layers, heads.
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "t5-small": (512, 64, 2048, 6, 8),
    "t5-base": (768, 64, 3072, 12, 12),
    "t5-large": (1024, 64, 4096, 24, 16),
    "t5-tiny": (64, 16, 128, 2, 4),  # not a published model; for tests of the benchmarks
}
ALL_SHAPES = (*SHAPES, *causal_base.SHAPES)
VOCABULARY = 32128  # of the T5 shapes
TOKENIZER_CONFIG = "tokenizer_config.json"  # the last file of a base to be written
_NAMES = ("reflection", "empathy", "fluency", "coherence", "specificity", "warmth", "brevity", "clarity")


def t5_config(shape: str) -> dict[str, object]:
    """`config.json` of a T5 v1.0 checkpoint of this shape."""
    d_model, d_kv, d_ff, layers, heads = SHAPES[shape]
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": VOCABULARY,
        "d_model": d_model,
        "d_kv": d_kv,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "scale_decoder_outputs": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def linear_shapes(shape: str) -> dict[str, tuple[int, int]]:
    """Linear layer -> (out, in), for all layers that adapters can be on."""
    if shape in causal_base.SHAPES:
        return causal_base.linear_shapes(shape)
    d_model, d_kv, d_ff, layers, heads = SHAPES[shape]
    inner = d_kv * heads
    linears: dict[str, tuple[int, int]] = {}
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for i in range(layers):
            for j, name in enumerate(attentions):
                path = f"{stack}.block.{i}.layer.{j}.{name}"
                linears |= {f"{path}.{p}": (inner, d_model) for p in "qkv"}
                linears[f"{path}.o"] = (d_model, inner)
            path = f"{stack}.block.{i}.layer.{len(attentions)}.DenseReluDense"
            linears[f"{path}.wi"] = (d_ff, d_model)
            linears[f"{path}.wo"] = (d_model, d_ff)
    return linears


def write_base(folder: Path, shape: str, *, seed: int = 0) -> None:
    """Write a random checkpoint with a byte-level tokenizer."""
    if shape in causal_base.SHAPES:
        causal_base.write_weights(folder, shape, seed=seed)
        write_tokenizer(folder, causal_base.SHAPES[shape]["vocab_size"])
        return
    _write_t5(folder, shape, seed=seed)
    write_tokenizer(folder, VOCABULARY)


def _write_t5(folder: Path, shape: str, *, seed: int) -> None:
    torch.manual_seed(seed)
    d_model, d_kv, _, layers, heads = SHAPES[shape]
    tensors: dict[str, torch.Tensor] = {"shared.weight": torch.randn(VOCABULARY, d_model)}
    for stack, parts in (("encoder", 2), ("decoder", 3)):
        for i in range(layers):
            for j in range(parts):
                tensors[f"{stack}.block.{i}.layer.{j}.layer_norm.weight"] = torch.ones(d_model)
        tensors[f"{stack}.final_layer_norm.weight"] = torch.ones(d_model)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tensors[bias] = torch.randn(32, heads) * 0.5
    for name, (rows, columns) in linear_shapes(shape).items():
        # T5's own initialisation, so that activations keep the size of the real model's.
        scale = (columns * d_kv) ** -0.5 if name.endswith(".q") else columns**-0.5
        tensors[f"{name}.weight"] = torch.randn(rows, columns) * scale
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    follow_umask(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(t5_config(shape), indent=2) + "\n", encoding="utf-8")


def write_bundle(
    folder: Path,
    shape: str,
    *,
    objectives: int = 3,
    rank: int = 8,
    seed: int = 0,
    base: Path | None = None,
    on_reply: bool = False,
) -> Path:
    """Write a bundle: a random base and `objectives` random adapters of `rank` on all linear layers except the head.
    `base`: a folder for the base, which is written unless it exists; several bundles can share it through symbolic
    links. `on_reply` (decoder-only shapes): adapters act from the last end of sequence in the prompt on, so lanes share
    what comes before."""
    if base is None:
        write_base(folder / BASE_DIR, shape, seed=seed)
    else:
        if not (base / TOKENIZER_CONFIG).exists():
            write_base(base, shape, seed=seed)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / BASE_DIR).exists():
            (folder / BASE_DIR).symlink_to(base.resolve(), target_is_directory=True)
    linears = linear_shapes(shape)
    names = _NAMES[:objectives]
    for n, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed * 1000 + n + 1)
        modules = {
            module: LoraPair(
                torch.randn(rank, columns, generator=generator) * columns**-0.5,
                torch.randn(rows, rank, generator=generator) * 0.1,
                scale=1.0,
            )
            for module, (rows, columns) in linears.items()
        }
        adapter = Adapter(name, modules, invocation_tokens=(EOS,) if on_reply else None)
        write_peft(adapter, folder / ADAPTERS_DIR / name)
    spec = BundleSpec(
        name=f"{shape}-random",
        base=BaseRef(path=BASE_DIR),
        max_source_tokens=1024 if shape in causal_base.SHAPES else 512,
        objectives={name: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{name}") for name in names},
        profiles={"even": ProfileSpec(weights=dict.fromkeys(names, 1.0))},
        default_profile="even",
    )
    write_spec(folder, spec)
    return folder


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level tokenizer with T5's special ids, padded to `size` so that every id has a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {token: i + 3 for i, token in enumerate(alphabet)}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **special}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=ALL_SHAPES, default="t5-base", help="model shape (default t5-base)")
    parser.add_argument(
        "--objectives",
        type=int,
        default=3,
        choices=range(1, len(_NAMES) + 1),
        metavar="1-8",
        help="number of objectives (default 3)",
    )
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    args = parser.parse_args()
    if args.out.exists():
        print(f"make_bundle: error: --out {args.out}: exists already", file=sys.stderr)
        return 2
    write_bundle(args.out, args.shape, objectives=args.objectives, rank=args.rank, seed=args.seed)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
