"""Model soups: one adapter whose weight update is the weighted sum of several adapters' updates (Wortsman et al. 2022,
Rewarded Soups: Rame et al. 2023), exact, by concatenating their factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.errors import AdapterError


def soup(name: str, adapters: Sequence[Adapter], weights: Mapping[str, float]) -> Adapter:
    """sum_i w_i scale_i B_i A_i per module, as one pair of rank sum_i R_i with scale 1.

    An average of the factors themselves, sum w A and sum w B, would be another matrix: it has cross terms B_i A_j.
    Modules that an adapter leaves alone get nothing from it.

    Raises AdapterError for adapters that begin to act at different tokens: one adapter cannot.
    """
    first = adapters[0]
    if any(adapter.invocation_tokens != first.invocation_tokens for adapter in adapters):
        raise AdapterError(f"{name}: the adapters begin to act at different tokens, so no single one is their sum")
    modules: dict[str, list[tuple[float, LoraPair]]] = {}
    for adapter in adapters:
        for module, pair in adapter.modules.items():
            modules.setdefault(module, []).append((weights[adapter.name], pair))
    return Adapter(
        name,
        {
            module: LoraPair(
                torch.cat([pair.a for _, pair in parts], dim=0),
                torch.cat([weight * pair.scale * pair.b for weight, pair in parts], dim=1),
                1.0,
            )
            for module, parts in modules.items()
        },
        invocation_tokens=first.invocation_tokens,
        task=first.task,
    )
