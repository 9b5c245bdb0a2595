"""Exit code 0 while the server in this container is alive, 1 otherwise, with one line that says why."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4  # less than the timeout of HEALTHCHECK, so that the line below is seen


def main() -> int:
    port = os.environ.get("EMORL_PORT") or "8000"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the host has no part in this
    try:
        with opener.open(f"http://127.0.0.1:{port}/livez", timeout=TIMEOUT_S) as answer:
            reason = "" if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        reason = f"status {error.code}: {error.read(500).decode(errors='replace')}"
    except OSError as error:
        reason = f"no answer on port {port}: {error}"
    if reason:
        print(reason, file=sys.stderr)  # noqa: T201
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
