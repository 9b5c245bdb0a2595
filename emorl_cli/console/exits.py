"""How a command ends: its exit code, and one line about what went wrong."""

from __future__ import annotations

import sys

DONE, FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def complain(message: str) -> None:
    """One line on stderr, whatever line ends the message came with."""
    print("emorl: error:", " ".join(message.split()), file=sys.stderr)
