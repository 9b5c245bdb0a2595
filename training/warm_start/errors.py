"""What a warm start cannot do."""

from __future__ import annotations

from emorl_core.errors import EmorlError


class FitError(EmorlError):
    """Supervised training that cannot start or go on; one line that names the field or the step."""

    code = "invalid_fit"
