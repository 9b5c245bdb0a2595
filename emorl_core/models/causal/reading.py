"""How a lane reads its prompt: which part is prefilled with which adapters, and what is fed after that.

Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397) acts from its invocation tokens on, so before them keys and
values are those of a lane without it, and lanes share them. The rule is PEFT's: the last occurrence in the prompt
counts, the invocation tokens themselves are adapted, and for a prompt without them the adapter does nothing, not in
the reply either. Invocation tokens in the reply change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from emorl_core.errors import InvalidRequest
from emorl_core.lanes.lane import Coefficients, Lane

Invocations = Sequence[tuple[int, ...] | None]  # of each stacked adapter; None: it acts everywhere


@dataclass(frozen=True, slots=True)
class Reading:
    """Equal prefixes and spans are one prefill."""

    prefix: tuple[int, ...]  # prompt tokens that prefill runs
    spans: tuple[tuple[int, Coefficients], ...]  # the first token of each stretch of the prefix, and what acts there
    first: tuple[int, ...]  # prompt tokens that are fed after it, one at least
    acting: Coefficients  # what acts on those and on the reply

    @property
    def untouched(self) -> bool:
        """Whether the prefix is read by the bare base."""
        return not any(any(coefficients) for _, coefficients in self.spans)

    def by_token(self) -> list[Coefficients]:
        """What acts on each token of the prefix."""
        points: list[Coefficients] = []
        for (start, point), end in pairwise([*self.spans, (len(self.prefix), ())]):
            points += [point] * (end[0] - start)
        return points


def read(lane: Lane, invocations: Invocations) -> Reading:
    """Cut a lane's prompt where the last of its activated adapters begins to act; without any, before its last token.

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
    """As `read`, but a lane in which nothing acts is cut where the attached activated adapters begin, so that it shares
    their prompt."""
    found, prompt = read(lane, invocations), lane.prompt_ids
    if any(found.acting) or not found.untouched:
        return found
    starts = [activation_start(prompt, invocation) for invocation in invocations if invocation is not None]
    cut = min([start for start in starts if start is not None], default=len(found.prefix))
    return Reading(prompt[:cut], ((0, found.acting),) if cut else (), prompt[cut:], found.acting)


def activation_start(prompt: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last occurrence of `invocation` in the prompt begins; None when there is none."""
    size, wanted = len(invocation), tuple(invocation)
    for start in range(len(prompt) - size, -1, -1):
        if tuple(prompt[start : start + size]) == wanted:
            return start
    return None


def _acting(point: Coefficients, starts: Sequence[int | None], place: int) -> Coefficients:
    return tuple(c if start is not None and start <= place else 0.0 for c, start in zip(point, starts, strict=True))
