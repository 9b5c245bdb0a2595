"""`python -m tests.http.serve_fake`: a server over the fake model as a process of its own, for tests that send signals.

Prints its URL once it is ready; logs to stderr as `emorl serve` does.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stderr

from emorl_core.fake import fake_ensemble
from server.run import run
from server.settings import load_settings
from server.watch.log_queue import Printed, to_stderr
from server.watch.logs import logging_to


def main() -> None:
    step_delay_s, mean_length, *given = sys.argv[1:]
    ensemble = fake_ensemble(slots=4, step_delay_s=float(step_delay_s), mean_length=int(mean_length))
    settings = load_settings(port=0, **dict(pair.split("=", 1) for pair in given))
    with logging_to(to_stderr(), settings), redirect_stderr(Printed()):
        run(settings, ensemble, on_ready=lambda url: print(url, flush=True))  # noqa: T201  what the test waits for


if __name__ == "__main__":
    main()
