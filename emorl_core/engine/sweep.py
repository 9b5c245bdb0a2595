"""One prompt, many weight vectors, one run that shares every common prefix.

A lane's hidden state depends on the tokens so far, never on the weights. So K weight vectors on one prompt are one
tree: the engine runs them as one branch with K members, which forks only where their mixes choose different tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emorl_core.combine_modes import check_combine
from emorl_core.errors import InvalidRequest, InvalidWeights, shown
from emorl_core.types import Combine, Completion, FinishReason, LanePrompts, Request, Sampling
from emorl_core.weights import ResolvedWeights

# Two vectors count as the same direction when they agree to this many decimals of the largest component.
_RAY_DECIMALS = 12
MAX_GRID = 100_000


@dataclass(frozen=True, slots=True)
class SweepItem:
    """The completion of one prompt under one weight vector."""

    prompt_index: int
    weights_index: int
    weights: dict[str, float]  # resolved
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All completions of a sweep, by prompt, and what they cost.

    `lane_row_steps` counts lane rows computed, one token each; `unshared_lane_row_steps` what one run per prompt and
    weight vector would have computed for the same texts.
    """

    items: tuple[SweepItem, ...]  # prompt-major, in the order the vectors were given
    seed: int
    lane_row_steps: int
    unshared_lane_row_steps: int

    def of_prompt(self, prompt_index: int) -> tuple[SweepItem, ...]:
        """One item per weight vector."""
        first, last = (bisect_left(self.items, p, key=_prompt_of) for p in (prompt_index, prompt_index + 1))
        return self.items[first:last]

    def distinct(self, prompt_index: int) -> dict[str, list[int]]:
        """Distinct text -> the indices of the weight vectors that give it, texts in order of first appearance."""
        return texts_of(self.of_prompt(prompt_index))


def texts_of(items: Iterable[SweepItem]) -> dict[str, list[int]]:
    """For one prompt's items: distinct text -> the indices of the weight vectors that give it."""
    texts: dict[str, list[int]] = {}
    for item in items:
        texts.setdefault(item.text, []).append(item.weights_index)
    return texts


class SweepPlan:
    """The requests of a sweep, and the items that their completions make.

    Pass every group to `Engine.add_group`, then every Completion to `take`. Vectors that must give the same
    text (see `merge_rays`) are one request.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: Sequence[ResolvedWeights],
        sampling: Sampling,
        *,
        combine: Combine = "hidden",
        only: Sequence[Collection[int]] | None = None,
        prefix: str = "sweep",
        lane_prompts: Sequence[LanePrompts] | None = None,
        samplings: Sequence[Sampling] | None = None,
        logprobs: bool = False,
        attribution: bool = False,
    ) -> None:
        """prompts: token ids of each; lane_prompts: one per prompt, see `Request`; sampling: with its seed set; only:
        for each prompt the indices of its vectors, None: all; prefix: of the request ids; samplings: one per vector,
        with the lengths and stop strings of `sampling`, None: `sampling` for all; logprobs, attribution: include them
        in the completions.

        Raises InvalidRequest or InvalidWeights: nothing to do, or vectors that this mode cannot mix.
        """
        if not prompts:
            raise InvalidRequest("prompts is empty; allowed: at least one text", param="prompts")
        if not vectors:
            raise InvalidRequest("weights is empty; allowed: at least one vector", param="weights")
        for i, each in enumerate(vectors):
            check_combine(combine, each.vector, attribution=attribution, param=f"weights.{i}")
        _check_only(only, len(prompts), len(vectors))
        self.prompts = [tuple(prompt) for prompt in prompts]
        self._lane_prompts = [()] * len(self.prompts) if lane_prompts is None else list(lane_prompts)
        self.vectors = tuple(vectors)
        self.sampling = sampling
        self._combine = combine
        self._prefix = prefix
        self._samplings = [sampling] * len(vectors) if samplings is None else list(samplings)
        rays = merge_rays([v.vector for v in vectors], self._samplings, combine)
        self._told: dict[str, Any] = {"logprobs": logprobs, "attribution": attribution}
        # for each prompt, the vectors of each request
        self._same: list[dict[int, list[int]]] = [{} for _ in self.prompts]
        for p, same in enumerate(self._same):
            for i in range(len(self.vectors)) if only is None else sorted(set(only[p])):
                same.setdefault(rays[i], []).append(i)
        self._items: dict[tuple[int, int], SweepItem] = {}
        self._expected = sum(len(indices) for same in self._same for indices in same.values())
        self._cost = [0] * len(self.prompts)  # lane-row steps at each prompt's last completion

    @property
    def requests(self) -> int:
        """The number of requests over all prompts."""
        return sum(len(same) for same in self._same)

    @property
    def done(self) -> bool:
        return len(self._items) == self._expected

    def groups(self) -> list[list[Request]]:
        """One group per prompt with one request per distinct vector; none for prompts without vectors."""
        groups = [
            [
                Request(
                    f"{self._prefix}-{p}-{v}",
                    prompt,
                    self.vectors[v].vector,
                    self._samplings[v],
                    self._combine,
                    profile=self.vectors[v].profile,
                    stream=False,
                    **self._told,
                    tag=(p, v),
                    lane_prompts=self._lane_prompts[p],
                )
                for v in self._same[p]
            ]
            for p, prompt in enumerate(self.prompts)
        ]
        return [group for group in groups if group]

    def take(self, completion: Completion) -> list[SweepItem]:
        """The items of a completion, one per vector that it stands for."""
        p, v = completion.tag
        self._cost[p] = max(self._cost[p], completion.lane_row_steps)
        made = [
            SweepItem(
                p,
                i,
                self.vectors[i].as_dict(),
                completion.text,
                completion.token_ids,
                completion.finish_reason,
            )
            for i in self._same[p][v]
        ]
        self._items.update({(item.prompt_index, item.weights_index): item for item in made})
        return made

    @property
    def completed(self) -> int:
        """The number of items so far, of prompts times vectors."""
        return len(self._items)

    def result(self) -> SweepResult:
        items = tuple(self._items[key] for key in sorted(self._items))
        unshared = sum(self._lanes(item.weights_index) * len(item.token_ids) for item in items)
        return SweepResult(items, self.sampling.seed or 0, sum(self._cost), unshared)

    def _lanes(self, index: int) -> int:
        """The lane rows that one vector needs by itself."""
        if self._combine == "weights":
            return 1
        return sum(weight != 0.0 for weight in self.vectors[index].vector)


def sweep_vectors(
    objectives: Sequence[str],
    weights: Sequence[Mapping[str, float]] | None,
    resolution: int | None,
    resolve: Callable[[Mapping[str, float]], ResolvedWeights],
    *,
    prompts: int,
    most: int | None = None,
) -> list[ResolvedWeights]:
    """The weight vectors of a sweep: `weights`, or the grid of `resolution`.

    Args:
        prompts: how many are swept.
        most: completions (prompts times vectors) allowed; counted before any vector is made.

    Raises:
        InvalidRequest, InvalidWeights: neither or both are given, there are too many, or one is wrong.
    """
    if (weights is None) == (resolution is None):
        raise InvalidRequest("give exactly one of weights and resolution", param="weights")
    if isinstance(weights, Mapping):
        raise InvalidRequest("weights is one mapping; allowed: a list of them", param="weights")
    param = "weights" if resolution is None else "resolution"
    size = len(weights or ()) if resolution is None else grid_size(len(objectives), resolution)
    if most is not None and prompts * size > most:
        raise InvalidRequest(
            f"the sweep asks for {prompts} x {size} completions; allowed: up to {most} (max_sweep)", param=param
        )
    if resolution is not None:
        weights = simplex_grid(objectives, resolution)
    vectors = []
    for i, each in enumerate(weights or ()):
        try:
            vectors.append(resolve(each))
        except InvalidWeights as error:
            raise InvalidWeights(f"vector {i}: {error.message}", param=f"weights.{i}") from None
    return vectors


def grid_size(objectives: int, resolution: int) -> int:
    """How many vectors `simplex_grid` makes: C(resolution + N - 1, N - 1).

    Raises InvalidRequest for a resolution below 1 or a grid of more than 100,000 vectors.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int) or not 1 <= resolution <= MAX_GRID:
        raise InvalidRequest(
            f"resolution is {shown(resolution)}; allowed: a whole number from 1 to {MAX_GRID}", param="resolution"
        )
    size = math.comb(resolution + objectives - 1, objectives - 1)
    if size > MAX_GRID:
        raise InvalidRequest(
            f"resolution is {resolution}, a grid of {shown(size)} vectors; allowed: at most {MAX_GRID}",
            param="resolution",
        )
    return size


def simplex_grid(objectives: Sequence[str], resolution: int) -> list[dict[str, float]]:
    """Every weight vector with components k / resolution that sum to 1. Raises as `grid_size`, before making any."""
    grid_size(len(objectives), resolution)
    return [
        {name: count / resolution for name, count in zip(objectives, counts, strict=True)}
        for counts in compositions(resolution, len(objectives))
    ]


def merge_rays(
    vectors: Sequence[Sequence[float]], samplings: Sequence[Sampling], combine: Combine = "hidden"
) -> list[int]:
    """For each vector the index of the first one that gives the same text: equal vectors with equal sampling always,
    and under greedy decoding positive multiples of each other (scaling all logits does not move their largest)."""

    # Mixed logits scale with the weights, but terms added to them do not. So in other modes, or with an additive
    # penalty, only equal vectors are merged.
    def scales(sampling: Sampling) -> bool:
        return sampling.greedy and combine == "hidden" and not sampling.adds

    first: dict[tuple[tuple[float, ...], Sampling], int] = {}
    return [
        first.setdefault((_key(vector, scales(sampling)), sampling), i)
        for i, (vector, sampling) in enumerate(zip(vectors, samplings, strict=True))
    ]


def _prompt_of(item: SweepItem) -> int:
    return item.prompt_index


def _check_only(only: Sequence[Collection[int]] | None, prompts: int, vectors: int) -> None:
    if only is None:
        return
    if len(only) != prompts:
        raise InvalidRequest(f"only has {len(only)} entries for {prompts} prompts; allowed: one each", param="only")
    for p, wanted in enumerate(only):
        for i in wanted:
            if not 0 <= i < vectors:
                raise InvalidRequest(f"only.{p} names vector {i}; allowed: 0 to {vectors - 1}", param=f"only.{p}")


def _key(vector: Sequence[float], greedy: bool) -> tuple[float, ...]:
    if not greedy:
        return tuple(vector)
    largest = max(abs(value) for value in vector)
    return tuple(round(value / largest, _RAY_DECIMALS) + 0.0 for value in vector)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as a sum of this many whole numbers from 0, the largest first."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)
