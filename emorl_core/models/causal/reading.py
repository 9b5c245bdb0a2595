"""How a lane reads its prompt: which part is prefilled with which adapters, and which tokens are fed after that.

Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397) acts from its invocation tokens on. Before them, keys and
values are those of a lane without it, and lanes share them. The rules are PEFT's: the last occurrence in the prompt
counts, the invocation tokens themselves are adapted, and if the prompt does not contain them, the adapter does nothing,
not even in the reply. Invocation tokens in the reply change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from emorl_core.errors import InvalidRequest
from emorl_core.lanes.lane import Coefficients, Lane

Invocations = Sequence[tuple[int, ...] | None]  # for each stacked adapter; None: it acts everywhere


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt split into prefill and fed tokens. Lanes with equal prefixes and spans share one prefill."""

    prefix: tuple[int, ...]  # prompt tokens that prefill runs
    spans: tuple[tuple[int, Coefficients], ...]  # start of each span of the prefix, and the coefficients that act there
    first: tuple[int, ...]  # prompt tokens that are fed after it, at least one
    acting: Coefficients  # the coefficients for those and for the reply

    @property
    def untouched(self) -> bool:
        """Whether the prefix is read by the base alone."""
        return not any(any(coefficients) for _, coefficients in self.spans)

    def by_token(self) -> list[Coefficients]:
        """The coefficients that act on each token of the prefix."""
        points: list[Coefficients] = []
        for (start, point), end in pairwise([*self.spans, (len(self.prefix), ())]):
            points += [point] * (end[0] - start)
        return points


def read(lane: Lane, invocations: Invocations) -> Reading:
    """Split a lane's prompt where the last of its activated adapters begins to act; without any, before its last token.

    Raises:
        InvalidRequest: an empty prompt.
    """
    prompt, point = lane.prompt_ids, lane.coefficients
    if not prompt:
        raise InvalidRequest("the prompt is empty; allowed: one token at least", param="prompt")
    starts: list[int | None] = []
    for coefficient, invocation in zip(point, invocations, strict=True):
        if not coefficient:
            starts.append(None)
        else:
            starts.append(0 if invocation is None else activation_start(prompt, invocation))
    activated = [
        s for s, invocation in zip(starts, invocations, strict=True) if invocation is not None and s is not None
    ]
    cut = max(activated, default=len(prompt) - 1)
    changes = sorted({0, *(start for start in starts if start is not None)})
    spans = tuple((change, _acting(point, starts, change)) for change in changes if change < cut)
    return Reading(prompt[:cut], spans, prompt[cut:], _acting(point, starts, len(prompt)))


def read_beside(lane: Lane, invocations: Invocations) -> Reading:
    """As `read`, but a lane without adapters is split where the attached activated adapters begin, so that it shares
    their prefix."""
    found, prompt = read(lane, invocations), lane.prompt_ids
    if any(found.acting) or not found.untouched:
        return found
    starts = [activation_start(prompt, invocation) for invocation in invocations if invocation is not None]
    cut = min([start for start in starts if start is not None], default=len(found.prefix))
    return Reading(prompt[:cut], ((0, found.acting),) if cut else (), prompt[cut:], found.acting)


def activation_start(prompt: Sequence[int], invocation: Sequence[int]) -> int | None:
    """The index of the last occurrence of `invocation` in the prompt; None if there is none."""
    size, wanted = len(invocation), tuple(invocation)
    for start in range(len(prompt) - size, -1, -1):
        if tuple(prompt[start : start + size]) == wanted:
            return start
    return None


def _acting(point: Coefficients, starts: Sequence[int | None], place: int) -> Coefficients:
    return tuple(c if start is not None and start <= place else 0.0 for c, start in zip(point, starts, strict=True))
