"""The interface to a bundle: builds requests of every kind, and describes the loaded model."""

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
    """Describes a loaded model and how it computes."""

    architecture: str
    device: str
    dtype: str
    quantize: Quantize  # storage of the base's matrices
    slots: int
    vocab_size: int
    max_positions: int | None
    compiled: bool  # whether new requests use the compiled decoding step
    threads: int  # torch's threads
    parameter_bytes: dict[str, int] = field(default_factory=dict)  # {"base": ..., "adapters": ...}


class Frontend(ExactRequests, DraftsRequests, ABC):
    """Builds the requests of one bundle, wherever its engine runs."""

    hashes: Hashes | None = None
    scorers: Scorers

    @property
    @abstractmethod
    def held(self) -> Held:
        """The current state."""

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
        """Whether new requests use the compiled decoding step."""
        return self.held.compiled

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}: bytes of parameters held."""
        return dict(self.held.parameter_bytes)
