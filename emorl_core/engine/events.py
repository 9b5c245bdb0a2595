"""Events about requests: tokens, intervals and regions, endings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from emorl_core.engine.sequences import Branch, Choice, Chooser, Member
from emorl_core.errors import EmorlError, EngineError, OutOfMemory
from emorl_core.types import Completion, Event, Failure, FinishReason, TokenEvent
from emorl_core.weights import named


class Reporter:
    """Makes the events, and records on the members what their completions will contain."""

    def __init__(self, lanes: Sequence[str]) -> None:
        """lanes: names, `base` first."""
        self._lanes = lanes

    def token(
        self, branch: Branch, member: Member, choice: Choice, text: str, reason: FinishReason | None
    ) -> list[Event]:
        """A member's new token, which released `text`; reason: why the branch ends here, if it does."""
        if branch.chooser is not None:
            return [] if reason is None else self._part(branch, branch.chooser, reason)
        request = member.request
        if not member.silent:
            member.logprobs.append(choice.logprob)
        if choice.attribution is not None:
            member.attributions.append(choice.attribution)
        if request.top_logprobs:
            member.top_logprobs.append(choice.top_logprobs)
        completion = None if reason is None else self._completion(branch, member, reason)
        events: list[Event] = []
        if request.stream:
            events.append(
                TokenEvent(
                    request.request_id,
                    len(branch.tokens) - 1,
                    choice.token_id,
                    text,
                    choice.logprob,
                    choice.attribution,
                    choice.top_logprobs,
                    completion,
                    request.tag,
                )
            )
        return events if completion is None else [*events, completion]

    def cancelled(self, branch: Branch, member: Member) -> list[Event]:
        """A member was cancelled; a request with several branches reports it once."""
        chooser = branch.chooser
        if chooser is None:
            return [self._completion(branch, member, FinishReason.CANCELLED)]
        if chooser.over:
            return []
        chooser.over = True
        return [self._whole(branch, chooser, member, FinishReason.CANCELLED)]

    def failed(self, branch: Branch, member: Member, error: Exception) -> list[Event]:
        """A member failed; a request with several branches fails as a whole, and reports it once."""
        if branch.chooser is not None:
            if branch.chooser.over:
                return []
            branch.chooser.over = True
        return [Failure(member.request.request_id, _told(error), member.request.tag)]

    def _part(self, branch: Branch, chooser: Chooser, reason: FinishReason) -> list[Event]:
        (member,) = branch.members
        events = [chooser.ended(member, "".join(branch.texts), tuple(branch.tokens), reason)]
        chooser.going -= 1
        if not chooser.going:
            chooser.over = True
            events.append(self._whole(branch, chooser, member, FinishReason.STOP))
        return events

    def _completion(self, branch: Branch, member: Member, reason: FinishReason) -> Completion:
        return Completion(
            text="".join(branch.texts),
            finish_reason=reason,
            token_ids=tuple(branch.tokens),
            logprobs=tuple(member.logprobs),
            weights=named(self._lanes, member.vector),
            attributions=tuple(member.attributions),
            top_logprobs=tuple(member.top_logprobs),
            token_texts=tuple(branch.texts),
            **_common(branch, member),
        )

    def _whole(self, branch: Branch, chooser: Chooser, member: Member, reason: FinishReason) -> Completion:
        middle = tuple(sum(each) / len(each) for each in zip(*chooser.corners, strict=True))
        return chooser.completion(
            reason,
            text="",
            token_ids=(),
            logprobs=(),
            weights=named(self._lanes, middle),
            **_common(branch, member),
        )


def _common(branch: Branch, member: Member) -> dict[str, Any]:
    request, now = member.request, time.perf_counter()
    return {
        "request_id": request.request_id,
        "seed": request.sampling.seed or 0,
        "prompt_tokens": len(request.prompt_ids),
        "profile": request.profile,
        "queue_s": (branch.admitted or now) - member.arrived,
        "first_token_s": (branch.first_token or now) - member.arrived,
        "total_s": now - member.arrived,
        "lane_row_steps": branch.meter.lane_row_steps,
        "compiled": bool(branch.compiled),
        "tag": request.tag,
    }


def _told(error: Exception) -> EmorlError:
    """The public description of a fault: its type, never its message, which may contain prompts."""
    if isinstance(error, EmorlError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return OutOfMemory("the device had no memory left for this request")
    return EngineError(f"the request failed inside the engine ({type(error).__name__})")
