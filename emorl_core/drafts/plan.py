"""A sweep over a spread of weights, and the drafts chosen from its texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from emorl_core.drafts.choosing import pick
from emorl_core.engine.sweep import SweepItem, SweepPlan
from emorl_core.errors import InvalidRequest, shown
from emorl_core.types import MAX_SEED, Attribution, Completion, Request, Sampling
from emorl_core.weights import named

MAX_COUNT = 16  # as many as a choice may record
MAX_CANDIDATES = 256
MAX_SEEDS = 64
DRAWN_TEXTS = 48  # divided among the objectives
RankedBy = Literal["scores", "likelihood"]
Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many drafts are wanted, out of how many texts.

    `candidates`: weight vectors to try (`spread`), each with its most likely text. `seeds`: texts to sample from each
    objective alone, which takes one lane row per token where a mix takes one per objective; None: 48 divided among
    the objectives, and none at temperature 0. `diversity`, `min_distance`: see `pick`.
    """

    count: int = 3
    candidates: int = 8
    seeds: int | None = None
    diversity: float = 0.1
    min_distance: float = 0.4

    def check(self, *, greedy: bool, objectives: int, most: int | None) -> None:
        """Raises InvalidRequest naming the field. most: completions allowed."""
        for name, least, limit in (("count", 1, MAX_COUNT), ("candidates", 1, MAX_CANDIDATES), ("seeds", 0, MAX_SEEDS)):
            value = getattr(self, name)
            if name == "seeds" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
                raise InvalidRequest(
                    f"{name} is {shown(value)}; allowed: a whole number from {least} to {limit}", param=name
                )
        for name in ("diversity", "min_distance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
                raise InvalidRequest(f"{name} is {shown(value)}; allowed: a number from 0 to 1", param=name)
        if self.seeds and greedy:
            raise InvalidRequest(
                f"seeds is {self.seeds} at temperature 0, where every seed gives the same text; allowed: 0, or a"
                " temperature above 0",
                param="seeds",
            )
        drawn = self.drawn(greedy=greedy, objectives=objectives)
        if most is not None and self.candidates + objectives * drawn > most:
            raise InvalidRequest(
                f"candidates is {self.candidates}, and {drawn} texts are drawn from each of {objectives} objectives;"
                f" allowed: up to {most} completions in all (max_sweep)",
                param="candidates",
            )

    def drawn(self, *, greedy: bool, objectives: int) -> int:
        """The number of sampled texts per objective."""
        if self.seeds is not None:
            return self.seeds
        return 0 if greedy else max(1, DRAWN_TEXTS // objectives)

    def samplings(self, settings: Sampling, objectives: int) -> list[Sampling]:
        """The sampling of each sampled text of an objective. settings: with the seed of the first one."""
        first = settings.seed or 0
        count = self.drawn(greedy=settings.greedy, objectives=objectives)
        return [replace(settings, seed=(first + i) % (MAX_SEED + 1)) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Draft:
    """One text to choose from, with the weights, seed and temperature that give it.

    `request` and `completion`: the first candidate's that gives it, in the order of the spread. `mean`: of `scores`,
    None where one is missing. `likelihood`: the geometric mean of the tokens' probabilities. `shares`: each objective's
    average share of the positive attribution; None without attribution. `given_by`: how many candidates give this text;
    `centre`: the mean of their weights, which describes the text better than those of a single one.
    """

    request: Request
    completion: Completion
    scores: dict[str, float | None]
    mean: float | None
    likelihood: float
    shares: dict[str, float] | None
    given_by: int
    centre: dict[str, float]

    @property
    def text(self) -> str:
        return self.completion.text

    @property
    def weights(self) -> dict[str, float]:
        return self.completion.weights

    @property
    def temperature(self) -> float:
        """0 for the most likely text."""
        return self.request.sampling.temperature


@dataclass(frozen=True, slots=True)
class Drafts:
    """`drafts`: best first by `ranked_by`. `candidates`: texts generated; `distinct`: different ones among them.

    `lane_row_steps`: lane rows computed, one token each; `unshared_lane_row_steps`: what one request per candidate
    would have computed.
    """

    drafts: tuple[Draft, ...]
    ranked_by: RankedBy
    candidates: int
    distinct: int
    seed: int
    lane_row_steps: int
    unshared_lane_row_steps: int


class DraftsPlan:
    """Submit `requests` to the engine as one group and pass every Completion to `take`; score `texts`, then call
    `choose`."""

    def __init__(self, sweep: SweepPlan, wanted: Wanted, lanes: Sequence[str]) -> None:
        """sweep: over one prompt, with log-probabilities."""
        self.sweep = sweep
        self.wanted = wanted
        self._lanes = tuple(lanes)
        (group,) = sweep.groups()
        self.requests = tuple(group)
        self._completions: dict[str, Completion] = {}
        self._items: dict[str, list[SweepItem]] = {}  # by text

    def take(self, completion: Completion) -> None:
        self._completions[completion.request_id] = completion
        self._items.setdefault(completion.text, []).extend(self.sweep.take(completion))

    def texts(self) -> list[str]:
        """The distinct texts in the order of the spread. Blank ones are left out unless there are no others."""
        return list(self._found())

    def choose(self, scores: Sequence[Scores] | None) -> Drafts:
        """scores: for each of `texts`, by scorer; None: there are no scorers.

        Texts are ranked by the mean of their scores, leaving out scorers that scored no text; without any scores, by
        likelihood.
        """
        found = self._found()
        given = [dict(each) for each in scores] if scores is not None else [{} for _ in found]
        counting = {name for each in given for name, score in each.items() if score is not None}
        drafts = [self._draft(request, own, counting) for (request, own) in zip(found.values(), given, strict=True)]
        worth = [draft.mean if counting else draft.likelihood for draft in drafts]
        picked = pick(
            list(found),
            worth,
            self.wanted.count,
            diversity=self.wanted.diversity,
            min_distance=self.wanted.min_distance,
        )
        cost = self.sweep.result()
        return Drafts(
            drafts=tuple(drafts[i] for i in picked),
            ranked_by="scores" if counting else "likelihood",
            candidates=len(cost.items),
            distinct=len(self._items),
            seed=cost.seed,
            lane_row_steps=cost.lane_row_steps,
            unshared_lane_row_steps=cost.unshared_lane_row_steps,
        )

    def _found(self) -> dict[str, Request]:
        """Text -> the first request that gave it."""
        first: dict[str, Request] = {}
        for request in self.requests:
            first.setdefault(self._completions[request.request_id].text, request)
        return {text: request for text, request in first.items() if text.strip()} or first

    def _draft(self, request: Request, scores: dict[str, float | None], counting: set[str]) -> Draft:
        completion = self._completions[request.request_id]
        items = self._items[completion.text]
        known = [score for name in counting if (score := scores[name]) is not None]
        return Draft(
            request=request,
            completion=completion,
            scores=scores,
            mean=fmean(known) if known and len(known) == len(counting) else None,
            likelihood=math.exp(fmean(completion.logprobs)) if completion.logprobs else 0.0,
            shares=mean_shares(completion.attributions, self._lanes),
            given_by=len(items),
            centre={name: fmean(item.weights.get(name, 0.0) for item in items) for name in completion.weights},
        )


def mean_shares(attributions: Sequence[Attribution], lanes: Sequence[str]) -> dict[str, float] | None:
    """Objective -> its share of a token's positive attribution, averaged over the tokens that have any; None where
    there is no such token."""
    each = [shares for attribution in attributions if (shares := attribution.shares) is not None]
    return named(lanes, [fmean(own) for own in zip(*each, strict=True)]) if each else None
