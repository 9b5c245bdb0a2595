"""What those who ask a bundle for texts see of it: requests of every kind, and what is held for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from emorl_core.bundles.snapshot import Hashes
from emorl_core.bundles.stored_scorers import Scorers
from emorl_core.drafts.requests import DraftsRequests
from emorl_core.exact_requests import ExactRequests
from emorl_core.types import Quantize


@dataclass(frozen=True, slots=True)
class Held:
    """What an engine holds and how it computes."""

    architecture: str
    device: str
    dtype: str
    quantize: Quantize  # how the base's matrices are kept
    slots: int
    vocab_size: int
    max_positions: int | None
    compiled: bool  # whether requests that begin now have a compiled decoding step
    threads: int  # that torch computes with
    parameter_bytes: dict[str, int] = field(default_factory=dict)  # {"base": ..., "adapters": ...}


class Frontend(ExactRequests, DraftsRequests, ABC):
    """Makes the requests of one bundle, wherever its engine runs."""

    hashes: Hashes | None = None
    scorers: Scorers

    @property
    @abstractmethod
    def held(self) -> Held:
        """As it is now."""

    @property
    def device(self) -> str:
        return self.held.device

    @property
    def dtype(self) -> str:
        return self.held.dtype

    @property
    def quantize(self) -> Quantize:
        return self.held.quantize

    @property
    def compiled(self) -> bool:
        """Whether requests that begin now have a compiled decoding step."""
        return self.held.compiled

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}: bytes of parameters held."""
        return dict(self.held.parameter_bytes)
