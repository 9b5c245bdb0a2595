"""The error of supervised training."""

from __future__ import annotations

from emorl_core.errors import EmorlError


class FitError(EmorlError):
    """Supervised training cannot start or continue; one line that names the field or the step."""

    code = "invalid_fit"
