"""What `emorl serve` and `emorl demo` share: an early look at the address, and the server itself."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings


def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the URL.

    Raises:
        EmorlError: the bundle cannot be served.
    """
    from server.log_queue import Printed, to_stderr
    from server.logs import logging_to
    from server.run import run

    with logging_to(to_stderr(), settings), redirect_stderr(Printed()):
        run(settings, on_ready=on_ready)
    if any(thread.daemon and thread.name.startswith("emorl-") for thread in threading.enumerate()):
        # A load or a step that did not end in time: under it the interpreter would abort at its own end.
        sys.stdout.flush()
        os._exit(0)
    return 0


def check_address(settings: Settings) -> None:
    """Fail in a second, not after a model has been loaded or built.

    Raises:
        EmorlError: the address is taken or does not belong to this machine.
    """
    from server.listener import bind

    if settings.port != 0:
        for sock in bind(settings.host, settings.port):
            sock.close()
