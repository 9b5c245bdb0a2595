"""`python -m tests.http.serve_fake`: a server over the fake model as a process of its own, for tests that send signals.

Prints its URL once it is ready.
"""

from __future__ import annotations

import sys

from emorl_core.fake import fake_ensemble
from server.run import run
from server.settings import load_settings


def main() -> None:
    step_delay_s, mean_length, drain_timeout_s = (float(argument) for argument in sys.argv[1:4])
    ensemble = fake_ensemble(slots=4, step_delay_s=step_delay_s, mean_length=int(mean_length))
    settings = load_settings(port=0, drain_timeout_s=drain_timeout_s)
    run(settings, ensemble, on_ready=lambda url: print(url, flush=True))  # noqa: T201  what the test waits for


if __name__ == "__main__":
    main()
