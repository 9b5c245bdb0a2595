"""Converts a GGUF file to a checkpoint folder, with transformers' own reader and the package `gguf`.

That reader silently ignores what it does not know: a tensor, scaled RoPE, a logit cap. Here a file is refused unless
everything in it has arrived in the folder.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emorl_core.errors import BundleError, UnsupportedModel, one_line, shown
from emorl_core.files.reading import LFS_ADVICE, is_lfs_pointer, open_regular

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")  # GGUF's names; tests compare these with the original
_MAGIC = b"GGUF"
# Keys under the architecture's name that transformers does not read -> the config attribute that must agree.
_HELD_TO = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_HARMLESS = {"rope.scaling.type": "none", "attention.causal": True}  # with these values


@dataclass(frozen=True, slots=True)
class Imported:
    """The contents of the file. `formats`: number of tensors in each of GGUF's number formats."""

    architecture: str
    formats: Mapping[str, int]
    parameters: int
    has_chat_template: bool


def import_gguf(file: Path, folder: Path, dtype: torch.dtype) -> Imported:
    """Write config, weights (safetensors in `dtype`), generation config and tokenizer into `folder`.

    Raises:
        UnsupportedModel: an architecture, tensor or key that would be lost; a broken file; no package `gguf`.
        BundleError: the file's tokenizer cannot be read.
    """
    reader = _opened(file)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    architecture = keys.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file}: general.architecture is {shown(architecture)}; allowed: {', '.join(ARCHITECTURES)}. Another "
            "model is served from its safetensors checkpoint"
        )
    if keys.get("general.type", "model") != "model":
        raise UnsupportedModel(f"{file}: general.type is {shown(keys['general.type'])}; allowed: model")
    if keys.get("split.count", 1) > 1:
        raise UnsupportedModel(f"{file}: is one of {keys['split.count']} parts; merge them with llama-gguf-split first")
    with _quiet(), _faults_of(file):
        model = _model(file, {tensor.name for tensor in reader.tensors}, dtype)
        _refuse_lost_keys(file, architecture, keys, model.config)
        model.save_pretrained(folder)
        has_template = _save_tokenizer(file, folder, len(keys.get("tokenizer.ggml.tokens", ())))
    return Imported(
        architecture,
        dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)),
        sum(parameter.numel() for parameter in model.parameters()),
        has_template,
    )


def _opened(file: Path) -> Any:
    """A `gguf.GGUFReader`."""
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedModel("reading GGUF needs the package gguf: pip install 'emorl[gguf]'")
    if is_lfs_pointer(file):
        raise UnsupportedModel(f"{file} {LFS_ADVICE}")
    with open_regular(file) as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise UnsupportedModel(f"{file}: is not a GGUF file")
    from gguf import GGUFReader

    with _faults_of(file):
        return GGUFReader(file)


def _model(file: Path, stored: set[str], dtype: torch.dtype) -> Any:
    """The library's model, with every tensor of the file."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    loaded, report = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    processor = TENSOR_PROCESSORS.get(loaded.config.model_type.removesuffix("_text"), TensorProcessor)
    known = get_gguf_hf_weights_map(loaded, processor(config=loaded.config.to_dict()))
    lost = sorted(stored - set(known))
    if lost:
        more = f", nor for {len(lost) - 1} more" if len(lost) > 1 else ""
        hint = "; it scales RoPE" if lost[0].startswith("rope_") else ""
        raise UnsupportedModel(f"{file}: transformers has no place for tensor {shown(lost[0], 100)}{more}{hint}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModel(f"{file}: has no tensor for {missing[0]!r}; the model would make it up")
    # A new model with the same weights: the loaded one is marked as quantised, which would appear in config.json.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(loaded).__name__]
    with torch.device("meta"):
        fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    return fresh


def _refuse_lost_keys(file: Path, architecture: str, keys: Mapping[str, Any], config: Any) -> None:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    read = {key for key, name in GGUF_CONFIG_MAPPING[architecture].items() if name is not None}
    for key, value in keys.items():
        _, _, own = key.partition(f"{architecture}.")
        if not own or own in read or (own in _HARMLESS and value == _HARMLESS[own]):
            continue
        found = _attribute(config, _HELD_TO[own]) if own in _HELD_TO else None
        if found is None or found != value:
            expected = "nothing reads it" if own not in _HELD_TO else f"the model would have {found}"
            raise UnsupportedModel(
                f"{file}: {key} is {shown(value)}, which transformers does not carry over: {expected}"
            )


def _attribute(config: Any, name: str) -> Any:
    if name == "head_dim":
        return getattr(config, name, None) or config.hidden_size // config.num_attention_heads
    return getattr(config, name, None)


def _save_tokenizer(file: Path, folder: Path, entries: int) -> bool:
    """Save the tokenizer with only the file's entries: the library's classes append tokens of their own
    (`<|endoftext|>`, `<mask>`), for which the model has no embedding. Returns whether there is a chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - a stranger's file in somebody else's code
        raise BundleError(f"{file}: its tokenizer cannot be read: {one_line(error)}") from None
    tokenizer.save_pretrained(folder)
    path, options_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    added = {each["content"] for each in content["added_tokens"] if each["id"] >= entries}
    content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < entries]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    options = json.loads(options_path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in options.items() if not (isinstance(value, str) and value in added)}
    options_path.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return bool(tokenizer.chat_template)


@contextmanager
def _faults_of(file: Path) -> Iterator[None]:
    """Turn any error of the libraries about the file into one line."""
    try:
        yield
    except (BundleError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a stranger's file in somebody else's code
        raise UnsupportedModel(f"{file}: cannot be read: {one_line(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as progress

    shown_before = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if shown_before:
            progress.enable_progress_bar()
