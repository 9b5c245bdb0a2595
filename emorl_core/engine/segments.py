"""Two weight vectors, every text between them, exactly and without a grid.

Along w(t) = (1 - t) a + t b each logit is linear in t, for a given prefix of tokens. So the chosen token changes
only where two lines cross: the upper envelope of V lines gives all of them, each segment of the envelope is a prefix
one token longer on a smaller interval, and the recursion ends with the texts. In the engine an interval is a branch
with one member, and this chooser.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emorl_core import combine
from emorl_core.engine.sequences import Branch, Choice, Member
from emorl_core.errors import EmorlError, InvalidRequest, NonFinite
from emorl_core.models.family import LaneModel
from emorl_core.types import Completion, Interval, Request

# By rounding, a crossing computed from the two ends differs from the t where the argmax of the mixed float32 logits
# really changes. That t is searched for within this distance.
_SEARCH = 1e-4
_PROBES = 15
_FINEST = 1e-15  # narrower than this, hardly any float64 values of t are left to try


@dataclass(frozen=True, slots=True)
class SegmentsRequest(Request):
    """A request for every greedy text between its own weights and those of `to`, which share all the rest."""

    to: tuple[float, ...] = ()
    min_width: float = 1e-7  # narrower intervals are not divided
    most: int | None = None  # intervals; with more it fails
    most_slots: int | None = None  # intervals that run at once
    time_limit_s: float | None = None  # from its first slot on; it then fails
    most_named: str = "most"  # what the caller calls these limits, for the errors
    time_limit_named: str = "time_limit_s"


@dataclass(frozen=True, slots=True)
class SegmentsCompletion(Completion):
    """`weights` are those in the middle; `intervals` in rising order, empty when cancelled."""

    intervals: tuple[Interval, ...] = ()

    @property
    def completion_tokens(self) -> int:
        """Of all its texts together, as a sweep counts them."""
        return sum(len(interval.token_ids) for interval in self.intervals)


@dataclass(frozen=True, slots=True)
class SegmentsResult:
    """Intervals in rising order; they cover [0, 1], and neighbours differ in their tokens."""

    from_weights: dict[str, float]
    to_weights: dict[str, float]
    intervals: tuple[Interval, ...]
    min_width: float
    lane_row_steps: int

    @property
    def breaks(self) -> tuple[float, ...]:
        """The values of t between two intervals."""
        return tuple(interval.start for interval in self.intervals[1:])

    def at(self, t: float) -> Interval:
        """The interval that holds t."""
        return next(interval for interval in reversed(self.intervals) if interval.start <= t or interval.start == 0.0)


@dataclass(slots=True, eq=False)
class Span(Member):
    """The part of a request for segments that has one branch's tokens in common: t from `start` to `end`."""

    start: float = 0.0
    end: float = 1.0


@dataclass(slots=True, eq=False)
class Segments:
    """The `Chooser` of one request."""

    request: SegmentsRequest
    over: bool = False
    ended: list[Interval] = field(default_factory=list)  # in the order they finished; neighbours may be merged
    going: int = 1  # branches that are not at their end

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        if self.request.combine != "hidden":
            raise InvalidRequest(
                f"combine is {self.request.combine!r}; allowed for segments: hidden, since only mixed logits are "
                "linear in the weights",
                param="combine",
            )
        if not sampling.greedy or sampling.looks_back or sampling.logit_bias:
            raise InvalidRequest("segments are exact for greedy decoding without penalties or bias only")

    def intervals(self) -> tuple[Interval, ...]:
        """What was found, in rising order; neighbours with the same tokens are one."""
        merged: list[Interval] = []
        for interval in sorted(self.ended, key=lambda found: found.start):
            if merged and merged[-1].token_ids == interval.token_ids:
                interval = replace(merged.pop(), end=interval.end)
            merged.append(interval)
        return tuple(merged)

    def split(self, branches: int) -> EmorlError | None:
        self.going += branches - 1
        most = self.request.most
        if most is None or len(self.ended) + self.going <= most:
            return None
        return InvalidRequest(
            f"there are more than {most} intervals between the two weight vectors; allowed: up to that many"
            f" ({self.request.most_named}); ask for fewer tokens or weights that are closer",
            param="max_new_tokens",
        )

    def choose(self, model: LaneModel, branch: Branch, hidden: Tensor) -> list[tuple[Member, Choice]]:
        """The longest interval comes first: it keeps the lane rows, and the others copy them."""
        (span,) = branch.members
        assert isinstance(span, Span)  # made so by the engine
        try:
            limit = self.request.time_limit_s
            if limit is not None and time.perf_counter() > branch.admitted + limit:
                raise InvalidRequest(
                    f"the intervals between the two weight vectors took more than {limit:g} seconds"
                    f" ({self.request.time_limit_named}); ask for fewer tokens, a larger min_width or closer weights",
                    param="max_new_tokens",
                )
            parts = _Envelope(self.request, model, span, len(branch.tokens), hidden).parts()
        except EmorlError as error:
            return [(span, Choice(0, error=error))]
        parts.sort(key=lambda part: part[0] - part[1])
        return [(replace(span, start=start, end=end), Choice(token)) for start, end, token in parts]


class _Envelope:
    """The largest logits along one span, for one position."""

    def __init__(self, request: SegmentsRequest, model: LaneModel, span: Span, position: int, hidden: Tensor) -> None:
        self._model, self._span, self._hidden = model, span, hidden
        self._min_width = max(request.min_width, _FINEST)
        ends = [[vector[number] for number in span.numbers] for vector in (request.weights, request.to)]
        self._weights = torch.tensor(ends, dtype=torch.float64, device=hidden.device)  # [2, N]
        held = position < request.sampling.min_new_tokens
        self._forbidden = list(model.facts.eos_token_ids) if held else []

    def parts(self) -> list[tuple[float, float, int]]:
        """(start, end, token id) along the span, in rising order, tokens all different."""
        span, logits = self._span, self._logits
        if span.end - span.start <= self._min_width:
            middle = logits(torch.tensor([(span.start + span.end) / 2], dtype=torch.float64))
            return [(span.start, span.end, int(middle.argmax(dim=-1)))]
        at_from, at_to = self._ends()
        slope = at_to - at_from
        value = at_from + span.start * slope
        tokens, borders = [int(value.argmax())], [span.start]
        while True:
            now, token = borders[-1], tokens[-1]
            steeper = slope > slope[token]
            gap = (value[token] - value) + (slope[token] - slope) * (now - span.start)
            crossing = torch.where(steeper, now + gap.clamp(min=0) / (slope - slope[token]), float("inf"))
            earliest = float(crossing.min())
            if earliest >= span.end:
                break
            # Several lines may cross in one point: beyond it the steepest of them is on top.
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

    def _ends(self) -> Tensor:
        """[2, V] float64: the logits at t = 0 and t = 1, mixed from the lanes' own, so that the slopes of a narrow
        span are as good as those of a wide one."""
        mixed = self._weights @ self._model.head(self._hidden).double()
        _check(mixed)
        mixed[:, self._forbidden] = -1e30
        return mixed

    def _logits(self, t: Tensor) -> Tensor:
        """t [K] float64 -> logits [K, V], computed just as the runner computes a request's."""
        weights = torch.lerp(self._weights[0], self._weights[1], t.to(self._weights.device).unsqueeze(1)).float()
        mixed = self._model.head(combine.mix_hidden(self._hidden.unsqueeze(0), weights))
        _check(mixed)
        mixed[:, self._forbidden] = float("-inf")
        return mixed

    def _refined(self, crossing: float, before: int, after: int) -> float:
        """The t near `crossing` where the mixed logits of `after` really overtake those of `before`.

        Each round probes `_PROBES` values at once: a head product costs nearly the same for one row as for a few.
        """
        low, high = max(self._span.start, crossing - _SEARCH), min(self._span.end, crossing + _SEARCH)
        while high - low > self._min_width:
            probes = torch.linspace(low, high, _PROBES + 2, dtype=torch.float64)[1:-1]
            mixed = self._logits(probes)
            overtaken = (mixed[:, after] > mixed[:, before]).tolist()
            first = overtaken.index(True) if True in overtaken else _PROBES
            edges = [low, *probes.tolist(), high]
            low, high = edges[first], edges[first + 1]
        return (low + high) / 2


def _check(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise NonFinite("the model produced NaN or inf for this request")
