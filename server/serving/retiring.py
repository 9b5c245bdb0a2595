"""Retired deployments: each is stopped when the last request that uses it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from server.serving.deployment import Deployment

_POLL_S = 0.02


class Retiring:
    def __init__(self, on_gone: Callable[[Deployment], None]) -> None:
        """on_gone: called when one has been stopped."""
        self._on_gone = on_gone
        self._tasks: dict[asyncio.Task[None], Deployment] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Deployment]:
        return iter(list(self._tasks.values()))

    def add(self, deployment: Deployment) -> None:
        task = asyncio.create_task(self._retire(deployment), name="emorl-retire")
        self._tasks[task] = deployment
        task.add_done_callback(self._gone)

    def cancel(self) -> list[Deployment]:
        """Stop waiting; returns the deployments that have not been stopped."""
        for task in list(self._tasks):
            task.cancel()
        return list(self._tasks.values())

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._on_gone(self._tasks.pop(task))

    async def _retire(self, deployment: Deployment) -> None:
        while deployment.users:
            await asyncio.sleep(_POLL_S)
        await deployment.stop()
