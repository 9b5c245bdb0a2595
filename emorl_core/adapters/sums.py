"""A weighted sum of adapters as one adapter, which is a mix in weight space or a model soup (Wortsman et al. 2022;
Rewarded Soups: Rame et al. 2023).

The sum is exact: the adapters' factors are concatenated, so that B A is the sum of their updates. An average
of the factors themselves, sum w A and sum w B, would be another matrix: it has cross terms B_i A_j.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from emorl_core.adapters.adapter import Adapter, LoraPair, checked_pair
from emorl_core.errors import AdapterError


def weighted_sum(name: str, adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """sum_i w_i scale_i B_i A_i per module, at least one adapter, activated if they are.

    Every module has scale 1 and the same rank, the sum of the adapters' largest: where one adapts a module with a
    lower rank, or not at all, the rest is zeros. PEFT supports a rank for every module, but vLLM allocates by the
    config's single `r`, and llama.cpp divides the config's single `lora_alpha` by each module's own rank.

    Raises:
        AdapterError: the adapters begin to act at different tokens, or a number is beyond float32.
    """
    first = adapters[0]
    for other in adapters:
        if other.invocation_tokens != first.invocation_tokens:
            raise AdapterError(
                f"adapter {name!r}: {first.name!r} {_begins(first)} and {other.name!r} {_begins(other)}; allowed in "
                "one sum: adapters that begin to act at the same tokens",
                param="weights",
            )
    parts = list(zip(adapters, weights, strict=True))
    modules = {module: None for adapter in adapters for module in adapter.modules}
    names, hashes = {adapter.base_name for adapter in adapters}, {adapter.base_sha256 for adapter in adapters}
    return Adapter(
        name,
        {module: _sum(parts, module, name) for module in modules},
        base_name=first.base_name if len(names) == 1 else None,
        base_sha256=first.base_sha256 if len(hashes) == 1 else None,
        invocation_tokens=first.invocation_tokens,
        task=first.task,
    )


def _sum(parts: Sequence[tuple[Adapter, float]], module: str, name: str) -> LoraPair:
    """a [R, in], b [out, R]."""
    rank = sum(max(pair.rank for pair in adapter.modules.values()) for adapter, _ in parts)
    pairs = [(adapter.modules[module], weight) for adapter, weight in parts if module in adapter.modules]
    a = torch.cat([pair.a for pair, _ in pairs])
    b = torch.cat([(weight * pair.scale) * pair.b for pair, weight in pairs], dim=1)
    spare = rank - len(a)
    return checked_pair(name, module, F.pad(a, (0, 0, 0, spare)), F.pad(b, (0, spare)), 1.0)


def _begins(adapter: Adapter) -> str:
    if adapter.invocation_tokens is None:
        return "acts on the whole prompt"
    return f"acts from the tokens {', '.join(map(str, adapter.invocation_tokens))} on"
