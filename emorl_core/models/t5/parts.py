"""Which part of T5 an adapter's modules belong to, and coefficients reduced to the adapters that act there."""

from __future__ import annotations

from collections.abc import Sequence

from emorl_core.lanes.lane import Coefficients


def encodes(module: str) -> bool:
    return module.startswith("encoder.")


def reads(module: str) -> bool:
    """Whether a layer is used to read a prompt: the encoder's layers, and cross-attention's keys and values."""
    return encodes(module) or module.endswith(("EncDecAttention.k", "EncDecAttention.v"))


def only(coefficients: Coefficients, of: Sequence[bool]) -> Coefficients:
    return tuple(value if wanted else 0.0 for value, wanted in zip(coefficients, of, strict=True))
