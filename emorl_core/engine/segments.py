"""Two weight vectors, every text between them, exactly and without a grid.

On the line w(t) = (1 - t) a + t b each logit is linear in t, for a given prefix of tokens. So the chosen token changes
only where two lines cross: the upper envelope of V lines gives all of them, each segment of the envelope is a prefix
one token longer on a smaller interval, and the recursion ends with the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emorl_core import combine
from emorl_core.detokenize import Decode, Detokenizer
from emorl_core.engine.runner import Runner
from emorl_core.engine.sequences import Branch, Member
from emorl_core.errors import NonFinite
from emorl_core.types import FinishReason, Request

# A crossing computed from the two ends differs from the place where the mixed float32 logits really change their
# largest by rounding. The place is looked for within this distance of it.
_SEARCH = 1e-4
_PROBES = 15


@dataclass(frozen=True, slots=True)
class Interval:
    """All t in [start, end] give this text."""

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class LineResult:
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


@dataclass(slots=True)
class _Node:
    branch: Branch
    start: float
    end: float


class LineSweep:
    """Walks the tree of intervals, a few at a time; `step` until `done`."""

    def __init__(
        self,
        runner: Runner,
        decode: Decode,
        from_request: Request,
        to_request: Request,
        *,
        slots: int,
        min_width: float,
    ) -> None:
        """The two requests share prompt and sampling; greedy. `slots` bounds the intervals that run at once."""
        self._runner = runner
        self._slots = slots
        self._min_width = min_width
        device = runner.model.device
        self._from = torch.tensor(from_request.weights, dtype=torch.float64, device=device)
        self._to = torch.tensor(to_request.weights, dtype=torch.float64, device=device)
        self._sampling = from_request.sampling
        members = [Member(from_request, 0.0), Member(to_request, 0.0)]
        root = Branch(from_request.prompt_ids, members, Detokenizer(decode, self._sampling.stop))
        self._meter = root.meter
        self._waiting = [_Node(root, 0.0, 1.0)]
        self._running: dict[Branch, _Node] = {}
        self._ended: list[Interval] = []

    @property
    def done(self) -> bool:
        return not self._waiting and not self._running

    @property
    def lane_row_steps(self) -> int:
        return self._meter.lane_row_steps

    @property
    def size(self) -> int:
        """Intervals known so far, with those that are not at their end."""
        return len(self._ended) + len(self._waiting) + len(self._running)

    @property
    def ended(self) -> Sequence[Interval]:
        """Intervals at their end, in the order they got there; neighbours may still become one."""
        return self._ended

    def intervals(self) -> tuple[Interval, ...]:
        """What was found, in rising order; neighbours with the same tokens are one."""
        merged: list[Interval] = []
        for interval in sorted(self._ended, key=lambda found: found.start):
            if merged and merged[-1].token_ids == interval.token_ids:
                last = merged.pop()
                interval = Interval(last.start, interval.end, last.text, last.token_ids, last.finish_reason)
            merged.append(interval)
        return tuple(merged)

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every running interval."""
        admitted = [self._waiting.pop() for _ in range(min(len(self._waiting), self._slots - len(self._running)))]
        self._running.update((node.branch, node) for node in admitted)
        self._runner.admit([node.branch for node in admitted])
        for branch, lanes, hidden in self._runner.step_hidden():
            node = self._running[branch]
            segments = self._segments(node, list(lanes), hidden)
            # The longest segment keeps the lane rows; the others copy them.
            segments.sort(key=lambda segment: segment[0] - segment[1])
            children = [_Node(branch, *segments[0][:2])]
            children += [_Node(branch.fork([]), start, end) for start, end, _ in segments[1:]]
            for child in children[1:]:
                child.branch.members = list(branch.members)
            for child, (_, _, token_id) in zip(children, segments, strict=True):
                self._append(child, token_id)
            self._continue(branch, children)

    def _continue(self, parent: Branch, children: list[_Node]) -> None:
        going = [child for child in children if child.branch.members]
        kept = any(child.branch is parent for child in going)
        for child in going:
            if child.branch is parent:
                continue
            if len(self._running) - (not kept) < self._slots:
                self._runner.fork(parent, child.branch)
                self._running[child.branch] = child
            else:
                self._waiting.append(child)
        del self._running[parent]
        if kept:
            self._running[parent] = next(child for child in going if child.branch is parent)
        else:
            self._runner.remove(parent)

    def _append(self, node: _Node, token_id: int) -> None:
        branch = node.branch
        branch.tokens.append(token_id)
        ended = token_id in self._runner.model.eos_token_ids
        text = "" if ended else branch.detokenizer.push(token_id)
        full = len(branch.tokens) >= self._sampling.max_new_tokens
        stopped = ended or branch.detokenizer.stopped
        if stopped or full:
            text += branch.detokenizer.finish()
        branch.texts.append(text)
        if stopped or full:
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            self._ended.append(Interval(node.start, node.end, "".join(branch.texts), tuple(branch.tokens), reason))
            branch.members = []

    def _ends(self, lanes: list[int], hidden: Tensor, position: int) -> Tensor:
        """[2, V] float64: the logits at t = 0 and t = 1, mixed from the lanes' own, so that the slopes of a narrow
        interval are as good as those of a wide one."""
        weights = torch.stack([self._from, self._to])[:, lanes]  # [2, N]
        mixed = weights @ self._runner.model.head(hidden).double()
        _check(mixed)
        if position < self._sampling.min_new_tokens:
            mixed[:, list(self._runner.model.eos_token_ids)] = -1e30
        return mixed

    def _choice(self, position: int, lanes: list[int], hidden: Tensor) -> Callable[[Tensor], Tensor]:
        """t [K] float64 -> logits [K, V], computed just as the runner computes a request's."""
        eos = list(self._runner.model.eos_token_ids)

        def logits(t: Tensor) -> Tensor:
            weights = torch.lerp(self._from, self._to, t.unsqueeze(1))[:, lanes].float()  # [K, N]
            mixed = self._runner.model.head(combine.mix_hidden(hidden.unsqueeze(0), weights))
            _check(mixed)
            if position < self._sampling.min_new_tokens:
                mixed[:, eos] = float("-inf")
            return mixed

        return logits

    def _segments(self, node: _Node, lanes: list[int], hidden: Tensor) -> list[tuple[float, float, int]]:
        """(start, end, token id) along the node's interval."""
        logits = self._choice(len(node.branch.tokens), lanes, hidden)
        if node.end - node.start <= self._min_width:
            middle = logits(_at((node.start + node.end) / 2))
            return [(node.start, node.end, int(middle.argmax(dim=-1)))]
        at_from, at_to = self._ends(lanes, hidden, len(node.branch.tokens))
        slope = at_to - at_from
        value = at_from + node.start * slope
        tokens, borders = [int(value.argmax())], [node.start]
        while True:
            now, token = borders[-1], tokens[-1]
            steeper = slope > slope[token]
            gap = (value[token] - value) + (slope[token] - slope) * (now - node.start)
            crossing = torch.where(steeper, now + gap.clamp(min=0) / (slope - slope[token]), float("inf"))
            earliest = float(crossing.min())
            if earliest >= node.end:
                break
            # Several lines may cross in one point: the steepest of them is on top behind it.
            at_once = crossing <= earliest
            follower = int(torch.where(at_once, slope, float("-inf")).argmax())
            tokens.append(follower)
            borders.append(earliest)
        refined = [node.start]
        for i in range(1, len(tokens)):
            refined.append(max(refined[-1], self._refined(borders[i], tokens[i - 1], tokens[i], node, logits)))
        refined.append(node.end)
        segments = [(refined[i], refined[i + 1], token) for i, token in enumerate(tokens)]
        return [segment for segment in segments if segment[1] > segment[0]]

    def _refined(
        self, crossing: float, before: int, after: int, node: _Node, logits: Callable[[Tensor], Tensor]
    ) -> float:
        """The t near `crossing` where the mixed logits of `after` really overtake those of `before`.

        Each round looks at `_PROBES` places at once: a head product costs nearly the same for one row as for a few.
        """
        low, high = max(node.start, crossing - _SEARCH), min(node.end, crossing + _SEARCH)
        while high - low > self._min_width:
            probes = torch.linspace(low, high, _PROBES + 2, dtype=torch.float64)[1:-1]
            mixed = logits(probes)
            overtaken = (mixed[:, after] > mixed[:, before]).tolist()
            first = overtaken.index(True) if True in overtaken else _PROBES
            edges = [low, *probes.tolist(), high]
            low, high = edges[first], edges[first + 1]
        return (low + high) / 2


def _check(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise NonFinite("the model produced NaN or inf for this request")


def _at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)
