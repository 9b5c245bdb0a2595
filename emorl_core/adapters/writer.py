"""Adapters written as PEFT LoRA folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from emorl_core.adapters.adapter import ACTIVATED_TASK, BASE_HASH, CONFIG_FILE, MODULE_PREFIX, WEIGHTS_FILE, Adapter


def write_peft(
    adapter: Adapter,
    folder: Path,
    *,
    base_name: str | None = None,
    base_sha256: str | None = None,
    task: str | None = None,
    extra: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a PEFT folder that `peft` and `read_peft` load. `folder` is created; files in it are replaced.

    Modules with another rank or scale than the most common one go into `rank_pattern` and `alpha_pattern`, keyed by
    their full path. `base_name` and `base_sha256` (`files.weights_hash`) say which base it is for, `task` is its
    family's `adapter_task`; None: the adapter's own. `extra` goes into adapter_config.json (`lora_dropout`, say).
    `dtype`: of the weights in the file.
    """
    ranks = [pair.rank for pair in adapter.modules.values()]
    rank = max(set(ranks), key=ranks.count)
    alphas = {module: pair.scale * pair.rank for module, pair in adapter.modules.items()}
    values = list(alphas.values())
    alpha = max(set(values), key=values.count)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task or adapter.task or (ACTIVATED_TASK if adapter.invocation_tokens else "SEQ_2_SEQ_LM"),
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
        tensors[f"{MODULE_PREFIX}{module}.lora_A.weight"] = pair.a.to(dtype).contiguous()
        tensors[f"{MODULE_PREFIX}{module}.lora_B.weight"] = pair.b.to(dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    known = base_sha256 or adapter.base_sha256
    (folder / WEIGHTS_FILE).write_bytes(_serialised(tensors, {BASE_HASH: known} if known else {}))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _serialised(tensors: dict[str, Tensor], facts: dict[str, str]) -> bytes:
    """A safetensors file. The library writes metadata in any order; this function gives the same bytes for the same
    content."""
    data = save(tensors, {"format": "pt", **facts})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _plain_number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
