"""What `emorl serve` and `emorl demo` share: an early look at the address, and the server itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from emorl_core.errors import EmorlError

if TYPE_CHECKING:
    from server.settings import Settings


def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the URL.

    Raises:
        EmorlError: the bundle cannot be served.
    """
    from server.run import run
    from server.watch.logs import set_up_logging

    set_up_logging(settings)
    run(settings, on_ready=on_ready)
    return 0


def check_address(settings: Settings) -> None:
    """Fail in a second, not after a model has been loaded or built.

    Raises:
        EmorlError: the address is taken or does not belong to this machine.
    """
    if settings.port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(address)
    except OSError as error:
        raise EmorlError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; choose another with --port",
            param="port",
        ) from None
