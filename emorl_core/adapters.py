"""Adapters on disk: PEFT LoRA folders and the authors' `.npz`, read, validated and written.

An adapter that lanes cannot represent exactly is refused with the reason; nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emorl_core.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEAD = "lm_head"
_ACTIVATED_TASK = "CAUSAL_LM"  # PEFT's, of models that read the prompt and write the reply as one sequence
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
# Initialisations that move the base's own weights, so that the adapter belongs to a base nobody else has.
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
    base_name: str | None = None  # the base it says it was trained on
    invocation_tokens: tuple[int, ...] | None = None  # activated LoRA: it acts from their last occurrence on

    @property
    def parameters(self) -> int:
        return sum(pair.a.numel() + pair.b.numel() for pair in self.modules.values())


def read_peft(folder: Path, name: str, *, expected_base: str | None = None) -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        name: the objective, for messages.
        expected_base: the hub id of the base in use, when it has one; an adapter that names another is refused.

    Raises:
        AdapterError: one line that names the adapter, the option or tensor, and the reason.
    """
    config = _read_config(folder, name)
    if config.get("peft_type") != "LORA":
        raise _refused(name, f"peft_type is {config.get('peft_type')!r}; allowed: LORA")
    for option, reason in _REFUSED_OPTIONS.items():
        if config.get(option):
            raise _refused(name, f"{option} is set; {reason}")
    if config.get("bias", "none") != "none":
        raise _refused(name, f"bias is {config['bias']!r}; allowed: none, since the lanes share the base's biases")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_MOVES_BASE):
        raise _refused(
            name, f"init_lora_weights is {init!r}, which moves the base's weights; convert it to plain LoRA first"
        )
    base_name = config.get("base_model_name_or_path") or None
    if base_name and expected_base and _is_another(base_name, expected_base):
        raise _refused(name, f"it was trained on base {base_name!r}; this bundle's base is {expected_base!r}")
    return Adapter(name, _pairs(_read_weights(folder, name), config, name), base_name, _invocation(config, name))


def read_npz(path: Path, name: str) -> Adapter:
    """Read the authors' published format: `<module>_loraA` [r, in], `<module>_loraB` [out, r], `<module>_scaling`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise AdapterError(f"{path.name}: cannot be read as .npz: {' '.join(str(error).split())}") from None
    halves: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        match = re.fullmatch(r"(.+)_(loraA|loraB|scaling)", key)
        if match is None:
            raise _refused(name, f"key {key!r} is not of the form <module>_loraA, <module>_loraB or <module>_scaling")
        halves.setdefault(match[1].removeprefix(_PREFIX), {})[match[2]] = array
    modules = {}
    for module, parts in halves.items():
        missing = {"loraA", "loraB", "scaling"} - set(parts)
        if missing:
            raise _refused(name, f"module {module!r} has no {', '.join(sorted(missing))}")
        if parts["scaling"].size != 1:
            raise _refused(name, f"module {module!r}: scaling holds {parts['scaling'].size} numbers; allowed: one")
        a, b = (torch.from_numpy(parts[key].astype(np.float32)) for key in ("loraA", "loraB"))
        modules[module] = _checked_pair(name, module, a, b, float(parts["scaling"].reshape(())))
    if not modules:
        raise _refused(name, "the file holds no module")
    return Adapter(name, modules)


def write_peft(
    adapter: Adapter, folder: Path, *, base_name: str | None = None, extra: dict[str, Any] | None = None
) -> None:
    """Write a PEFT folder that `peft` and `read_peft` load. `folder` is created; files in it are replaced.

    Modules with another rank or scale than the most common one go into `rank_pattern` and `alpha_pattern`, keyed by
    their full path. `extra` goes into adapter_config.json (a training run's `lora_dropout`, say).
    """
    ranks = [pair.rank for pair in adapter.modules.values()]
    rank = max(set(ranks), key=ranks.count)
    alphas = {module: pair.scale * pair.rank for module, pair in adapter.modules.items()}
    values = list(alphas.values())
    alpha = max(set(values), key=values.count)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _ACTIVATED_TASK if adapter.invocation_tokens else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_name or adapter.base_name,
        "r": rank,
        "lora_alpha": _plain_number(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(adapter.modules),
        "modules_to_save": None,
        "rank_pattern": {re.escape(m): p.rank for m, p in adapter.modules.items() if p.rank != rank},
        "alpha_pattern": {re.escape(m): _plain_number(a) for m, a in alphas.items() if a != alpha},
        **({"alora_invocation_tokens": list(adapter.invocation_tokens)} if adapter.invocation_tokens else {}),
        **(extra or {}),
    }
    tensors = {}
    for module, pair in adapter.modules.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = pair.a.to(torch.float32).contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = pair.b.to(torch.float32).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _pairs(tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> dict[str, LoraPair]:
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        # Saved by PEFT without the adapter's name, by some trainers with it (`lora_A.default.weight`).
        match = re.fullmatch(rf"(?:{re.escape(_PREFIX)})?(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight", key)
        if match is None:
            what = "a trained head" if _HEAD in key else "not the LoRA weight of a linear layer"
            raise _refused(
                name, f"tensor {key!r} is {what}; allowed: <module>.lora_A.weight and <module>.lora_B.weight"
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    modules = {}
    for module, parts in halves.items():
        if set(parts) != {"A", "B"}:
            raise _refused(name, f"module {module!r} has lora_{next(iter(parts))} alone; both factors are needed")
        a, b = parts["A"].to(torch.float32), parts["B"].to(torch.float32)
        alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise _refused(name, f"lora_alpha of module {module!r} is {alpha!r}; allowed: a finite number")
        rank = max(a.shape[0] if a.dim() == 2 else 0, 1)
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        modules[module] = _checked_pair(name, module, a, b, scale)
    if not modules:
        raise _refused(name, "it holds no LoRA weights")
    return modules


def _checked_pair(name: str, module: str, a: Tensor, b: Tensor, scale: float) -> LoraPair:
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
    return LoraPair(a, b, scale)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: a key is a regular expression for the end of the module's path, after a dot or from its start."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            continue
    return default


def _invocation(config: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    tokens = config.get("alora_invocation_tokens")
    if tokens is None:
        return None
    sound = isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
    if not sound or not tokens:
        raise _refused(name, f"alora_invocation_tokens is {tokens!r}; allowed: a list of token ids, at least one")
    if config.get("task_type") != _ACTIVATED_TASK:
        raise _refused(
            name,
            f"alora_invocation_tokens is set and task_type is {config.get('task_type')!r}; allowed: {_ACTIVATED_TASK}, "
            "since activated LoRA acts from a token of the prompt on",
        )
    return tuple(tokens)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"adapter {name!r}: {folder.name} has no {CONFIG_FILE}; it is a PEFT LoRA folder") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter {name!r}: {CONFIG_FILE} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise _refused(name, f"{CONFIG_FILE} must be a JSON object")
    return dict(config)


def _read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickle = folder / "adapter_model.bin"
        hint = f"; {pickle.name} is a pickle, which is not loaded" if pickle.exists() else ""
        raise AdapterError(f"adapter {name!r}: {folder.name} has no {WEIGHTS_FILE}{hint}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter {name!r}: {WEIGHTS_FILE} cannot be read: {error}") from None


def _refused(name: str, reason: str) -> AdapterError:
    return AdapterError(f"adapter {name!r}: {reason}", param=f"objectives.{name}.adapter")


def _is_another(base_name: str, expected_base: str) -> bool:
    """Whether two hub ids name different repositories; a folder's name says nothing."""
    both = _is_hub_id(base_name) and _is_hub_id(expected_base)
    return both and _hub_name(base_name) != _hub_name(expected_base)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".")


def _hub_name(name: str) -> str:
    """`t5-base` and `google-t5/t5-base` are one repository under its old and its new name."""
    return name.rsplit("/", 1)[-1].lower()


def _plain_number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
