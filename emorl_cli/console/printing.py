"""Machine-readable results on stdout."""

from __future__ import annotations

import json

# line separators that JSON does not escape
_ESCAPED_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def print_json(value: object) -> None:
    """One JSON document on one line of stdout. Values that JSON lacks (a date in a bundle's origin) become text.
    Characters that some readers treat as line breaks are escaped, so that each document is one line.
    """
    document = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    print(document.translate(_ESCAPED_LINE_ENDS), flush=True)
