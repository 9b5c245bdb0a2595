"""Adapters -> the stacked factors of a model's `LaneLinear` layers, with the check that they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from emorl_core.adapters.adapter import Adapter
from emorl_core.errors import AdapterError
from emorl_core.lanes.linear import LaneLinear


def stack_adapters(
    linears: Iterable[tuple[list[str], LaneLinear]], adapters: Sequence[Adapter], *, training: bool = False
) -> None:
    """Give every layer its adapters, padded with zeros to the layer's largest rank.

    For serving, scales are folded into B, which saves an operation per call. With `training` they are kept separate, so
    that A and B are exactly the parameters that PEFT would train, and both require gradients.

    Raises:
        AdapterError: a module that the base does not have, or factors whose shapes do not fit it.
    """
    layers = list(linears)
    check_fit(layers, adapters)
    for names, layer in layers:
        pairs = [[adapter.modules.get(name) for adapter in adapters] for name in names]  # [P][N]
        rank = max((pair.rank for row in pairs for pair in row if pair is not None), default=0)
        if rank == 0:
            layer.detach()
            continue
        weight = layer.lora_options()
        scale = torch.zeros(len(names), len(adapters), **weight)
        a = torch.zeros(len(names), len(adapters), rank, layer.in_features, **weight)
        b = torch.zeros(len(names), len(adapters), rank, layer.out_features, **weight)
        for p, row in enumerate(pairs):
            for n, pair in enumerate(row):
                if pair is not None:
                    own_a, own_b = layer.own(pair.a, pair.b)
                    a[p, n, : pair.rank] = own_a
                    b[p, n, : pair.rank, : layer.outs[p]] = own_b.t() if training else pair.scale * own_b.t()
                    scale[p, n] = pair.scale
        layer.attach(a, b, scale if training else None)


def check_fit(linears: Iterable[tuple[list[str], LaneLinear]], adapters: Sequence[Adapter]) -> None:
    """Raise AdapterError for the first adapter with a module the base lacks or a shape that does not fit."""
    shapes = {name: layer.features(p) for names, layer in linears for p, name in enumerate(names)}
    for adapter in adapters:
        for module, pair in adapter.modules.items():
            if module not in shapes:
                raise AdapterError(
                    f"adapter {adapter.name!r}: the base has no linear layer {module!r}; is it for another base?",
                    param=f"objectives.{adapter.name}.adapter",
                )
            found = (pair.a.shape[1], pair.b.shape[0])
            if found != shapes[module]:
                raise AdapterError(
                    f"adapter {adapter.name!r}: module {module!r} maps {found[0]} to {found[1]} features; the base's "
                    f"maps {shapes[module][0]} to {shapes[module][1]}; is it for another base?",
                    param=f"objectives.{adapter.name}.adapter",
                )
