"""The listening sockets: connections are accepted only as fast as there is room for them.

asyncio's own accept loop accepts the whole backlog; when descriptors run out, it logs a traceback for each.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from emorl_core.errors import EmorlError
from server.door.connections import Connections
from server.watch.logs import where

logger = logging.getLogger("emorl.server")

_AT_ONCE = 32  # connections accepted per event loop iteration, and at most an eighth of the limit
_RETRY_S = 0.5
# The kernel's send buffer per connection, which it doubles: more than one answer, but less than everything that a
# client that never reads may ask for.
_SEND_BUFFER = 128 * 1024
_TELL_EVERY_S = 60.0


def bind(host: str, port: int) -> list[socket.socket]:
    """One socket for every address of `host`, all on one port; "" is every interface.

    Raises:
        EmorlError: the address is taken or does not belong to this machine.
    """
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = bound[0].getsockname()[1] if port == 0 and len(bound) > 1 else port
            sock.bind((address[0], taken, *address[2:]))
            sock.setblocking(False)
    except OSError as error:
        for sock in bound:
            sock.close()
        raise EmorlError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port", param="port"
        ) from None
    return bound


class Listener:
    """Accepts on bound sockets until it is closed."""

    def __init__(
        self,
        sockets: list[socket.socket],
        make_protocol: Callable[[], asyncio.BaseProtocol],
        connections: Connections,
        backlog: int,
    ) -> None:
        self.sockets = sockets
        self._make_protocol = make_protocol
        self._connections = connections
        self._at_once = max(1, min(_AT_ONCE, connections.most // 8))
        self._told = -_TELL_EVERY_S
        for sock in sockets:
            sock.listen(backlog)
        self._tasks = [asyncio.create_task(self._serve(sock), name="emorl-listen") for sock in sockets]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def finish(self) -> None:
        """Close, but first accept those who have already connected, while there is room: the kernel would reset
        them."""
        self.close()
        await self.wait_closed()

    async def _serve(self, sock: socket.socket) -> None:
        try:
            while True:
                try:
                    await self._take(sock)
                except OSError as error:
                    self._tell(error)
                    if not self._connections.cut_one():  # closing it frees a file descriptor
                        await asyncio.sleep(_RETRY_S)
        finally:
            waiting = self._taken(sock, self._connections.most - len(self._connections))
            sock.close()
            await self._hand_on_all(waiting)

    async def _take(self, sock: socket.socket) -> None:
        """Wait for a connection; yield all that have arrived."""
        clients = [(await asyncio.get_running_loop().sock_accept(sock))[0]]
        try:
            clients += self._taken(sock, self._at_once - 1)
            await self._connections.make_room(len(clients))
            await self._hand_on_all(clients)
        finally:
            for client in clients:
                client.close()

    @staticmethod
    def _taken(sock: socket.socket, most: int) -> list[socket.socket]:
        """The connections that have arrived, up to `most`."""
        clients: list[socket.socket] = []
        with suppress(OSError):  # none left; any other error recurs at the next accept
            while len(clients) < most:
                clients.append(sock.accept()[0])
        return clients

    async def _hand_on_all(self, clients: list[socket.socket]) -> None:
        """Empties the list."""
        await asyncio.gather(*(self._hand_on(client, clients) for client in tuple(clients)))

    async def _hand_on(self, client: socket.socket, clients: list[socket.socket]) -> None:
        clients.remove(client)
        try:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            await asyncio.get_running_loop().connect_accepted_socket(self._make_protocol, client)
        except Exception as error:  # noqa: BLE001  one connection less, and the others go on
            client.close()
            logger.error("a connection could not be made: %s", where(error))

    def _tell(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            logger.warning("connections cannot be taken: %s", error.strerror)
