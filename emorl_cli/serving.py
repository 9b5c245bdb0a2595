"""Shared by `emorl serve` and `emorl demo`: an early check of the address, and running the server."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emorl_core.models.parallel.group import ProcessGroup
    from server.settings import Settings


def serve(settings: Settings, on_ready: Callable[[str], None], group: ProcessGroup | None = None) -> int:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the URL. group: processes over which the model is split; they end
    with this one.

    Raises:
        EmorlError: the bundle cannot be served.
    """
    from server.serving.signals import stand_by

    stand_by()  # before slow imports
    from server.run import run
    from server.watch.log_queue import Printed, to_stderr
    from server.watch.logs import logging_to

    try:
        with logging_to(to_stderr(), settings), redirect_stderr(Printed()):
            run(settings, group=group, on_ready=on_ready)
    finally:
        if group is not None:
            group.end()
    if not _threads_ended(within_s=1.0):
        # A load, a step or a long prompt may be in progress; the interpreter would wait for it, or abort.
        sys.stdout.flush()
        os._exit(0)
    return 0


def _threads_ended(within_s: float) -> bool:
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("emorl-")]
    deadline = time.monotonic() + within_s
    for thread in ours:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in ours)


def check_address(settings: Settings) -> None:
    """Check the address early, before a model is loaded or built.

    Raises:
        EmorlError: the address is taken or does not belong to this machine.
    """
    from server.door.listener import bind

    if settings.port != 0:
        for sock in bind(settings.host, settings.port):
            sock.close()
