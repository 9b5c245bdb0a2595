"""Replaces a lost engine process that crashed or was killed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.door.errors import ReloadFailed
from server.serving.deployment import Deployment

logger = logging.getLogger("emorl.server")

_PAUSES_S = (0.0, 1.0, 5.0, 15.0)  # before each try


class Replacing:
    """Loads the current bundle into another process. One at a time; on the event loop."""

    def __init__(
        self, serves: Callable[[Deployment], bool], reload: Callable[[Deployment], Awaitable[Deployment]]
    ) -> None:
        """serves: whether this deployment is still the current one; reload: replaces it. Raises ReloadFailed."""
        self._serves = serves
        self._reload = reload
        self._task: asyncio.Task[None] | None = None

    @property
    def going_on(self) -> bool:
        return self._task is not None

    def begin(self, lost: Deployment) -> None:
        if self._task is None and self._serves(lost):
            self._task = asyncio.create_task(self._run(lost), name="emorl-replace")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, lost: Deployment) -> None:
        try:
            for pause_s in _PAUSES_S:
                await asyncio.sleep(pause_s)
                if not self._serves(lost):
                    return
                logger.warning("the engine's process is started again")
                try:
                    lost = await self._reload(lost)
                except ReloadFailed:  # the log has the reason
                    continue
                if lost.worker.failure is None:
                    return
        finally:
            self._task = None
