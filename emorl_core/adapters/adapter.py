"""Adapters: what one is, and PEFT LoRA folders read and checked.

An adapter that lanes cannot represent exactly is refused with the reason; nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from emorl_core.adapters.patterns import Patterns
from emorl_core.errors import AdapterError, one_line, shown
from emorl_core.files.documents import read_json
from emorl_core.files.reading import Missing, Unreadable, read_bytes

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MODULE_PREFIX = "base_model.model."  # PEFT's, before a module's path
MOST_LETTERS = 300  # of a tensor's name
_MOST_CONFIG = 2**22  # bytes; enough for a pattern for each of thousands of modules
_MOST_WEIGHTS = 2**33
_HEAD = "lm_head"
BASE_HASH = "base_sha256"  # in the weights file's metadata: `files.weights_hash` of the base it was trained on
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATED_TASK = "CAUSAL_LM"  # PEFT's task type of decoder-only models
_cut = partial(shown, most=100)
# Keys of adapter_config.json that change what an adapter computes beyond W + scale * B A, with the reason to refuse.
_REFUSED_OPTIONS: dict[str, str] = {
    "use_dora": "DoRA rescales the base matrix, which the lanes share",
    "modules_to_save": "it carries full copies of modules, which the lanes share",
    "trainable_token_indices": "it trains embeddings, which the lanes share",
    "lora_bias": "it trains biases",
    "use_qalora": "QALoRA pools its input",
    "layer_replication": "it changes the base's layers",
    "target_parameters": "it adapts bare parameters, not linear layers",
    "use_bdlora": "block-diagonal LoRA has another shape",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA changes the base matrix",
    "monteclora_config": "MonteCLoRA samples its weights",
    "velora_config": "VeLoRA compresses its input",
    "megatron_config": "Megatron layers are sharded",
}
# Initialisations that change the base's own weights, so that the adapter fits that changed base only.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One linear layer's update: W + scale * b @ a. a [R, in], b [out, R], float32."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self) -> Tensor:
        """[out, in]: the full weight update."""
        return self.scale * (self.b @ self.a)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One objective's LoRA weights: module path in the base (`encoder.block.0.layer.0.SelfAttention.q`) -> pair."""

    name: str
    modules: Mapping[str, LoraPair]
    base_name: str | None = None  # the base that it claims to have been trained on
    base_sha256: str | None = None  # and the hash of that base's weights
    invocation_tokens: tuple[int, ...] | None = None  # activated LoRA: the adapter acts from their last occurrence on
    task: str | None = None  # PEFT's task type for this family of bases

    @property
    def parameters(self) -> int:
        return sum(pair.a.numel() + pair.b.numel() for pair in self.modules.values())


def read_peft(folder: Path, name: str) -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        name: the objective, for messages.

    Raises:
        AdapterError: one line that names the adapter, the option or tensor, and the reason.
    """
    config = _read_config(folder, name)
    _check_options(config, name)
    invocation = _invocation(config, name)
    tensors, metadata = _read_weights(folder, name)
    base_name = config.get("base_model_name_or_path") or None
    try:
        modules = _pairs(tensors, config, name)
    except Unreadable as error:
        raise _refused(name, error.reason) from None
    return Adapter(name, modules, base_name, metadata.get(BASE_HASH), invocation, config.get("task_type"))


def of_another_base(adapters: Sequence[Adapter], hub: str | None, base_sha256: str | None = None) -> Iterator[str]:
    """One line for every adapter that claims another base than the hub id `hub`, or than one whose weights have this
    hash; None: not known.

    Such an adapter is not refused. Names say little (a mirror, a renamed copy), and other bytes can be the same base in
    another precision; an adapter whose shapes do not fit is refused when it is attached.
    """
    for adapter in adapters:
        if base_sha256 and adapter.base_sha256 and adapter.base_sha256 != base_sha256:
            yield f"adapter {adapter.name!r}: it was trained on a base with other weights (their hash is another one)"
        elif adapter.base_name and hub and _is_another(adapter.base_name, hub):
            trained_on = _cut(adapter.base_name)
            yield f"adapter {adapter.name!r}: it was trained on base {trained_on}; the base here is {hub!r}"


def _check_options(config: Mapping[str, Any], name: str) -> None:
    """Raises AdapterError for an option that is not LoRA as lanes compute it."""
    if config.get("peft_type") != "LORA":
        raise _refused(name, f"peft_type is {_cut(config.get('peft_type'))}; allowed: LORA")
    for option, reason in _REFUSED_OPTIONS.items():
        if config.get(option):
            raise _refused(name, f"{option} is set; {reason}")
    # On a base without biases this trains none. Trained biases are found in the weights file, and refused.
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        raise _refused(name, f"bias is {_cut(config['bias'])}; allowed: none, all, lora_only")
    if config.get("use_rslora") not in (None, True, False):
        raise _refused(name, f"use_rslora is {_cut(config['use_rslora'])}; allowed: true, false")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_MOVES_BASE):
        raise _refused(
            name, f"init_lora_weights is {_cut(init)}, which moves the base's weights; convert it to plain LoRA first"
        )
    if not isinstance(config.get("base_model_name_or_path"), str | None):
        raise _refused(name, f"base_model_name_or_path is {_cut(config['base_model_name_or_path'])}; allowed: text")


def _pairs(tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> dict[str, LoraPair]:
    alphas = Patterns("alpha_pattern", config.get("alpha_pattern"))
    Patterns("rank_pattern", config.get("rank_pattern"))  # only checked: the rank is read from the matrices
    modules = {}
    for module, parts in _halves(tensors, name).items():
        if set(parts) != {"A", "B"}:
            raise _refused(name, f"module {module!r} has lora_{next(iter(parts))} alone; both factors are needed")
        a, b = parts["A"].to(torch.float32), parts["B"].to(torch.float32)
        alpha = alphas.value(module, config.get("lora_alpha"))
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise _refused(name, f"lora_alpha of module {module!r} is {_cut(alpha)}; allowed: a finite number")
        rank = max(a.shape[0] if a.dim() == 2 else 0, 1)
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        modules[module] = checked_pair(name, module, a, b, scale)
    if not modules:
        raise _refused(name, "it holds no LoRA weights")
    return modules


def _halves(tensors: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """Module -> A and B."""
    halves: dict[str, dict[str, Tensor]] = {}
    ways: dict[tuple[str, str], str] = {}
    for key, tensor in tensors.items():
        if len(key) > MOST_LETTERS:
            raise _refused(name, f"a tensor's name has {len(key):,} letters; allowed: up to {MOST_LETTERS}")
        # Saved by PEFT without the adapter's name, by some trainers with it (`lora_A.default.weight`).
        match = re.fullmatch(rf"({re.escape(MODULE_PREFIX)})?(.+)\.lora_([AB])(?:\.([^.]+))?\.weight", key)
        if match is None:
            raise _refused(
                name, f"tensor {key!r} is {_foreign(key)}; allowed: <module>.lora_A.weight and <module>.lora_B.weight"
            )
        if tensor.dtype not in _DTYPES:
            raise _refused(
                name, f"tensor {key!r} is {_shown(tensor.dtype)}; allowed: {', '.join(map(_shown, _DTYPES))}"
            )
        prefix, module, half, adapter = match.groups(default="")
        ways[prefix, adapter] = key
        if len(ways) > 1:
            first, second = ways.values()
            raise _refused(name, f"it holds two adapters, as by {first!r} and {second!r}; save one of them alone")
        halves.setdefault(module, {})[half] = tensor
    return halves


def _foreign(key: str) -> str:
    if key.endswith(".bias"):
        return "not the LoRA weight of a linear layer but a trained bias, and the lanes share the base's"
    return "a trained head" if _HEAD in key else "not the LoRA weight of a linear layer"


def checked_pair(name: str, module: str, a: Tensor, b: Tensor, scale: float) -> LoraPair:
    """A LoRA pair of finite factors that fit. Raises AdapterError naming the adapter and the module."""
    if module.split(".")[-1] == _HEAD:
        raise _refused(
            name, "it adapts the head (lm_head); mixing hidden states needs one head shared by all objectives"
        )
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise _refused(
            name, f"module {module!r} has factors {tuple(a.shape)} and {tuple(b.shape)}; allowed: [r, in] and [out, r]"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all() and math.isfinite(scale)):
        raise _refused(name, f"module {module!r} holds NaN or inf")
    if not torch.isfinite(scale * b).all():  # as it is used, in float32
        raise _refused(name, f"module {module!r} has scale {scale:g}, with which its B is beyond float32")
    return LoraPair(a, b, scale)


def _invocation(config: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    tokens = config.get("alora_invocation_tokens")
    if tokens is None:
        return None
    sound = isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
    if not sound or not tokens:
        raise _refused(name, f"alora_invocation_tokens is {tokens!r}; allowed: a list of token ids, at least one")
    if config.get("task_type") != ACTIVATED_TASK:
        raise _refused(
            name,
            f"alora_invocation_tokens is set and task_type is {config.get('task_type')!r}; allowed: {ACTIVATED_TASK}, "
            "since activated LoRA acts from a token of the prompt on",
        )
    return tuple(tokens)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG_FILE, most=_MOST_CONFIG)
    except Missing:
        raise AdapterError(f"adapter {name!r}: its folder has no {CONFIG_FILE}; allowed: a PEFT LoRA folder") from None
    except Unreadable as error:
        raise AdapterError(f"adapter {name!r}: {CONFIG_FILE} {error.reason}") from None
    if not isinstance(config, dict):
        raise _refused(name, f"{CONFIG_FILE} must be a JSON object")
    return config


def _read_weights(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, copied out of the mapped file (which could change), and the file's metadata."""
    try:
        data = read_bytes(folder / WEIGHTS_FILE, most=_MOST_WEIGHTS)
        tensors = dict(sorted(load(data).items()))  # it returns them in any order
    except Missing:
        pickle = folder / "adapter_model.bin"
        hint = f"; {pickle.name} is a pickle, which is not loaded" if pickle.exists() else ""
        raise AdapterError(f"adapter {name!r}: its folder has no {WEIGHTS_FILE}{hint}") from None
    except Unreadable as error:
        raise AdapterError(f"adapter {name!r}: {WEIGHTS_FILE} {error.reason}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise AdapterError(f"adapter {name!r}: {WEIGHTS_FILE} cannot be read: {one_line(error)}") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def _refused(name: str, reason: str) -> AdapterError:
    return AdapterError(f"adapter {name!r}: {reason}", param=f"objectives.{name}.adapter")


def _is_another(base_name: str, expected_base: str) -> bool:
    """Whether two hub ids name different repositories. False for folders, whose names say nothing."""
    both = _is_hub_id(base_name) and _is_hub_id(expected_base)
    return both and _hub_name(base_name) != _hub_name(expected_base)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".")


def _hub_name(name: str) -> str:
    """`t5-base` and `google-t5/t5-base` are one repository under its old and its new name."""
    return name.rsplit("/", 1)[-1].lower()


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
