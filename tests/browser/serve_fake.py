"""`python -m tests.browser.serve_fake PORT STEP_DELAY_S`: the fake model on a port that the test has chosen, as a process
that the test can kill. Prints its URL once it is ready."""

from __future__ import annotations

import sys

from emorl_core.fake import fake_ensemble
from server.run import run
from server.settings import load_settings


def main() -> None:
    ensemble = fake_ensemble(step_delay_s=float(sys.argv[2]), mean_length=15)
    run(load_settings(port=int(sys.argv[1])), ensemble, on_ready=lambda url: print(url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
