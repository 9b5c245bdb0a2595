"""Given (not sampled) replies, on which adapters are fitted before reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.rl.settings import AdapterFit


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a reply, with its end of sequence, as token ids."""

    source: tuple[int, ...]
    reply: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """An objective without pairs starts with an adapter that changes nothing."""

    fit: AdapterFit
    pairs: Mapping[str, tuple[Pair, ...]]  # by objective
