"""Results for programs, on stdout."""

from __future__ import annotations

import json

_ESCAPED_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}  # JSON escapes the others itself


def print_json(value: object) -> None:
    """One JSON document on one line of stdout. What JSON has no word for (a date in a bundle's origin) becomes text.

    What some readers take for the end of a line is escaped, so that documents and lines stay in step.
    """
    document = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    print(document.translate(_ESCAPED_LINE_ENDS), flush=True)
