"""Ray for the duration of a command: an existing cluster, or a local one. Needs the extra `ray`."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from emorl_core.errors import EmorlError

_OBJECTS_BYTES = 256 * 2**20  # bytes for requests and answers; by default Ray takes a third of the memory


class ClusterError(EmorlError):
    """Ray is not installed, or there is no cluster at the address."""

    code = "no_cluster"


@contextmanager
def connected(address: str | None, *, cores: int | None = None) -> Iterator[None]:
    """Connect to the cluster at the address. Without an address, start a local Ray with this many cores, which ends
    with the block.

    A SIGTERM ends the block as Ctrl-C does.

    Raises:
        ClusterError: one line.
    """
    # Turn off Ray's usage statistics; for an existing cluster, its owner decides.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # the log would lose lines
    try:
        import ray
    except ImportError:
        raise ClusterError("this needs Ray, which is not installed; pip install 'emorl[ray]'", param="ray") from None
    try:
        if address is None:
            ray.init(
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_OBJECTS_BYTES,
                logging_level=logging.WARNING,
            )
        else:
            _check_listens(address)
            ray.init(address=address, logging_level=logging.WARNING)
    except Exception as error:  # noqa: BLE001  Ray raises plain ones too: of a node that does not start in 30 s
        where = "on this machine" if address is None else f"at {address!r}"
        raise ClusterError(f"no Ray cluster {where}: {_first_line(error)}", param="ray") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray installs a handler that aborts the process
    try:
        yield
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Check the address, since Ray itself would retry for minutes. Raises `OSError`."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
