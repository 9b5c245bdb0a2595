"""emorl: N objectives for the price of one model, steered per request.

`from emorl_core import Ensemble` is the front door; it is imported on first use, so that the light modules (errors,
types, weights) do not cost the seconds that torch takes.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from emorl_core.types import Completion, FinishReason, Sampling, TokenEvent

if TYPE_CHECKING:
    from emorl_core.ensemble import Ensemble

__version__ = version("emorl")
__all__ = ["Completion", "Ensemble", "FinishReason", "Sampling", "TokenEvent", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Ensemble":
        from emorl_core.ensemble import Ensemble

        return Ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
