"""Exit codes, and the one-line error message."""

from __future__ import annotations

import sys

DONE, FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def complain(message: str) -> None:
    """Print a message as one line on stderr."""
    # In one piece: another thread's log line may come between two.
    sys.stderr.write(f"emorl: error: {' '.join(message.split())}\n")
