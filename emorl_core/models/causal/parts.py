"""Checks a split base: which part of each matrix transformers' tensor-parallel plan left in this process.

The library reads only this process's shards from the checkpoint, so that no process ever has the whole, and also runs
the self-test's reference split. It records its plan on each matrix, which is compared here with what the lean decoder
supports.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from emorl_core.errors import UnsupportedModel
from emorl_core.models.causal import lean
from emorl_core.models.parallel.group import ProcessGroup

_COLUMNS, _ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")
_DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")  # of config.json


def refuse_config(config: Any, group: ProcessGroup) -> None:
    """Refuse models that cannot be split, before any weight is read; config: the library's.

    Raises:
        UnsupportedModel: naming the model_type, or the size.
    """
    kind = config.model_type
    if kind not in lean.KINDS or not config.base_model_tp_plan:
        raise UnsupportedModel(
            f"base model_type {kind!r} cannot be held in parts by {group.size} processes; allowed: "
            f"{', '.join(sorted(lean.KINDS))}, or one process"
        )
    for key in _DIVIDED:
        value = getattr(config, key)
        if value % group.size:
            raise UnsupportedModel(
                f"config.json: {key} is {value}, which {group.size} processes cannot share equally; allowed: as many "
                f"processes as divide {', '.join(f'{each} ({getattr(config, each)})' for each in _DIVIDED)}"
            )


def keep_local(library: Any) -> None:
    """Leave this process's shards in the library's model, as plain tensors.

    Raises:
        UnsupportedModel: the plan differs from this project's.
    """
    for name, module in library.named_modules():
        kind = name.rsplit(".", 1)[-1]
        for which, parameter in module.named_parameters(recurse=False):
            wanted = _wanted(kind, which)
            found = parameter.placements[0] if isinstance(parameter, DTensor) else Replicate()
            if wanted is not None and found != wanted:
                raise UnsupportedModel(
                    f"base model_type {library.config.model_type!r}: transformers' plan has {name}.{which} as {found}, "
                    f"expected {wanted}; start one process"
                )
            if isinstance(parameter, DTensor):
                local = nn.Parameter(parameter.to_local().detach(), requires_grad=False)
                setattr(module, which, local)


def _wanted(kind: str, which: str) -> Shard | Replicate | None:
    """The required placement of a parameter; None: any."""
    if kind in _COLUMNS:
        return Shard(0)
    if kind in _ROWS:
        return Shard(1) if which == "weight" else Replicate()
    return Replicate() if "norm" in kind else None
