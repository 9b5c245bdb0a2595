"""The exact line between two weight vectors: every text of their mixes.

Along w(t) = (1 - t) a + t b the maximum of V linear logits is their upper envelope, and each of its segments is an
interval of t with one token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from emorl_core.engine.exact import CornerLogits, Exact, ExactCompletion, ExactRequest
from emorl_core.engine.sequences import Branch, Member
from emorl_core.errors import InvalidRequest
from emorl_core.types import FinishReason, Interval, IntervalFound

# Because of rounding, a crossing computed from the two ends differs from the t where the argmax of the mixed float32
# logits really changes. That t is searched for within this distance.
_SEARCH = 1e-4
_PROBES = 15
_FINEST = 1e-15  # below this width hardly any float64 values of t are left to try


@dataclass(frozen=True, slots=True)
class SegmentsRequest(ExactRequest):
    """A request for every greedy text between its own weights and those at the other end."""

    @property
    def to(self) -> tuple[float, ...]:
        """The weights at t = 1."""
        (end,) = self.others
        return end


@dataclass(frozen=True, slots=True)
class SegmentsCompletion(ExactCompletion):
    """`intervals` in ascending order; empty when cancelled."""

    intervals: tuple[Interval, ...] = ()

    @property
    def completion_tokens(self) -> int:
        """The number of tokens of all texts together, as for a sweep."""
        return sum(len(interval.token_ids) for interval in self.intervals)


@dataclass(frozen=True, slots=True)
class SegmentsResult:
    """Intervals in ascending order; they cover [0, 1], and neighbours differ in their tokens."""

    from_weights: dict[str, float]
    to_weights: dict[str, float]
    intervals: tuple[Interval, ...]
    min_width: float
    lane_row_steps: int

    @property
    def breaks(self) -> tuple[float, ...]:
        """The values of t at which the text changes."""
        return tuple(interval.start for interval in self.intervals[1:])

    def at(self, t: float) -> Interval:
        """The interval that contains t."""
        return next(interval for interval in reversed(self.intervals) if interval.start <= t or interval.start == 0.0)


@dataclass(slots=True, eq=False)
class Span(Member):
    """The part of the line on which one branch's tokens are chosen: t from `start` to `end`."""

    start: float = 0.0
    end: float = 1.0


@dataclass(slots=True, eq=False)
class Segments(Exact):
    """The `Chooser` of a request for segments."""

    asked_for = "segments"
    intervals: list[Interval] = field(default_factory=list)  # in order of completion; neighbours may be merged

    @property
    def found(self) -> int:
        return len(self.intervals)

    def part(self, whole: Member) -> Span:
        return Span(whole.request, whole.arrived, whole.lanes, whole.weights, whole.numbers)

    def divide(self, logits: CornerLogits, member: Member) -> list[tuple[Member, int]]:
        assert isinstance(member, Span)  # made by `part`
        parts = _Envelope(logits, member, self.request.min_width).parts()
        parts.sort(key=lambda part: part[0] - part[1])
        return [(replace(member, start=start, end=end), token) for start, end, token in parts]

    def ended(self, member: Member, text: str, tokens: tuple[int, ...], reason: FinishReason) -> IntervalFound:
        assert isinstance(member, Span)
        interval = Interval(member.start, member.end, text, tokens, reason)
        self.intervals.append(interval)
        return IntervalFound(member.request.request_id, interval, member.request.tag)

    def completion(self, reason: FinishReason, **common: Any) -> SegmentsCompletion:
        intervals = () if reason is FinishReason.CANCELLED else self._merged()
        return SegmentsCompletion(finish_reason=reason, intervals=intervals, **common)

    def _merged(self) -> tuple[Interval, ...]:
        """The intervals found, in ascending order; neighbours with the same tokens are merged."""
        merged: list[Interval] = []
        for interval in sorted(self.intervals, key=lambda found: found.start):
            if merged and merged[-1].token_ids == interval.token_ids:
                interval = replace(merged.pop(), end=interval.end)
            merged.append(interval)
        return tuple(merged)

    def split(self, branch: Branch, into: int) -> InvalidRequest | None:
        self.going += into - 1
        request = self.request
        if self.too_many():
            return InvalidRequest(
                f"there are more than {request.most} intervals between the two weight vectors; allowed: up to that many"
                f" ({request.most_named}); ask for fewer tokens or weights that are closer",
                param="max_new_tokens",
            )
        if self.too_long(branch):
            return InvalidRequest(
                f"the intervals between the two weight vectors took more than {request.time_limit_s:g} seconds"
                f" ({request.time_limit_named}); ask for fewer tokens, a larger min_width or closer weights",
                param="max_new_tokens",
            )
        return None


class _Envelope:
    """The largest logits along one span, for one position."""

    def __init__(self, logits: CornerLogits, span: Span, min_width: float) -> None:
        self._logits, self._span = logits, span
        self._min_width = max(min_width, _FINEST)

    def parts(self) -> list[tuple[float, float, int]]:
        """(start, end, token id) along the span, in ascending order, all tokens different."""
        span = self._span
        if span.end - span.start <= self._min_width:
            middle = self._logits.at(_places(torch.tensor([(span.start + span.end) / 2], dtype=torch.float64)))
            return [(span.start, span.end, int(middle.argmax(dim=-1)))]
        at_from, at_to = self._logits.affine()
        slope = at_to - at_from
        value = at_from + span.start * slope
        first = int(value.argmax())
        # largest at both ends, so also in between: the usual case
        if int((at_from + span.end * slope).argmax()) == first:
            return [(span.start, span.end, first)]
        tokens, borders = [first], [span.start]
        while True:
            now, token = borders[-1], tokens[-1]
            steeper = slope > slope[token]
            gap = (value[token] - value) + (slope[token] - slope) * (now - span.start)
            crossing = torch.where(steeper, now + gap.clamp(min=0) / (slope - slope[token]), float("inf"))
            earliest = float(crossing.min())
            if earliest >= span.end:
                break
            # Several lines may cross in one point; beyond it the steepest of them is on top.
            at_once = crossing <= earliest
            follower = int(torch.where(at_once, slope, float("-inf")).argmax())
            tokens.append(follower)
            borders.append(earliest)
        refined = [span.start]
        for i in range(1, len(tokens)):
            refined.append(max(refined[-1], self._refined(borders[i], tokens[i - 1], tokens[i])))
        refined.append(span.end)
        parts = [(refined[i], refined[i + 1], token) for i, token in enumerate(tokens)]
        return [part for part in parts if part[1] > part[0]]

    def _refined(self, crossing: float, before: int, after: int) -> float:
        """The t near `crossing` where the mixed logits of `after` really overtake those of `before`.

        Each round probes `_PROBES` values at once, since a head product costs nearly the same for one row as for a few.
        """
        low, high = max(self._span.start, crossing - _SEARCH), min(self._span.end, crossing + _SEARCH)
        while high - low > self._min_width:
            probes = torch.linspace(low, high, _PROBES + 2, dtype=torch.float64)[1:-1]
            mixed = self._logits.at(_places(probes))
            overtaken = (mixed[:, after] > mixed[:, before]).tolist()
            first = overtaken.index(True) if True in overtaken else _PROBES
            edges = [low, *probes.tolist(), high]
            low, high = edges[first], edges[first + 1]
        return (low + high) / 2


def _places(t: torch.Tensor) -> torch.Tensor:
    """t [P] -> u [P, 2]."""
    return torch.stack([1 - t, t], dim=1)
