"""Asks the policy, within limits. If it fails in any way, nothing is drafted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emorl_core.policy import FAILED, DoNotDraft
from emorl_core.text.chat import Message
from server.door.context import RequestContext
from server.door.errors import NotDrafted
from server.policy.loading import Policy
from server.watch.logs import where

logger = logging.getLogger("emorl.policy")

MAX_RUNNING = 16  # concurrent calls; one that hangs keeps its place forever
Conversation = tuple[Message, ...]


class PolicyDoor:
    """Asks a policy about conversations, one at a time. Used from the event loop."""

    def __init__(self, policy: Policy | None, timeout_s: float) -> None:
        """timeout_s: longest wait for one answer. A policy of None lets everything pass."""
        self._policy = policy
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(MAX_RUNNING)

    async def check(self, context: RequestContext, said: Callable[[], Sequence[Conversation]]) -> None:
        """Raises `NotDrafted` for the first conversation that gets no draft, and records the reason in the request's
        context.

        said: returns the conversations; called on another thread, and only if there is a policy.
        """
        if self._policy is None:
            return
        for conversation in await asyncio.to_thread(said):
            verdict = await self._asked(self._policy, conversation)
            if verdict is not None:
                context.not_drafted = verdict.reason
                raise NotDrafted(verdict.notice, reason=verdict.reason)

    async def _asked(self, policy: Policy, conversation: Conversation) -> DoNotDraft | Failed | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
                verdict = await self._on_a_thread(policy, conversation)
        except TimeoutError:
            logger.error("the policy did not answer within %g s (policy_timeout_s): not drafted", self._timeout_s)
        except _Raised as raised:
            logger.error("the policy raised %s: not drafted", where(raised.error))
        else:
            if verdict is None or type(verdict) is DoNotDraft:
                return verdict
            logger.error("the policy answered a %s, not None or DoNotDraft: not drafted", type(verdict).__name__)
        return Failed()

    async def _on_a_thread(self, policy: Policy, conversation: Conversation) -> object:
        """Run on a daemon thread, since the policy may hang."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()

        def settle(value: object, error: BaseException | None) -> None:
            self._places.release()
            if answer.done():  # the caller has given up
                return
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(_Raised(error))

        def main() -> None:
            value, error = None, None
            try:
                value = policy(conversation)
            except BaseException as caught:  # noqa: BLE001  whatever it is, it lets nothing pass
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        try:
            threading.Thread(target=main, name="emorl-policy", daemon=True).start()
        except RuntimeError as error:  # no more threads can be started
            settle(None, error)
        return await answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The substitute for the answer of a policy that gave none."""

    reason: str = FAILED
    notice: str = "No draft was written: what decides about that on this server did not answer."


class _Raised(Exception):
    def __init__(self, error: BaseException) -> None:
        self.error = error
