"""Validates requests and turns them into a branch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from emorl_core.engine.exact import Exact, ExactRequest
from emorl_core.engine.regions import MapRequest, Regions
from emorl_core.engine.segments import Segments
from emorl_core.engine.sequences import Branch, Job, members_of
from emorl_core.errors import InvalidRequest
from emorl_core.lanes.lane import Coefficients
from emorl_core.text.detokenize import Decode, Detokenizer
from emorl_core.types import Request

# Drawn seeds stay below 2^53, so that a JavaScript client reads and repeats them exactly.
_DRAWN_SEEDS = 2**53


class Intake:
    """Validates requests and gives them seeds, lanes and a detokenizer."""

    def __init__(self, points: Sequence[Coefficients], decode: Decode) -> None:
        """points: the named lanes, `base` first."""
        self._points = points
        self._decode = decode

    def branch(self, requests: Sequence[Request], job: Job | None = None) -> Branch:
        """One branch for requests that share prompt, stop strings and token limits. Raises InvalidRequest."""
        drawn = draw_seed()
        requests = [request if request.sampling.seed is not None else _seeded(request, drawn) for request in requests]
        first = requests[0]
        for request in requests:
            if _shape(request) != _shape(first):
                raise InvalidRequest("requests of one group must share prompt, stop strings and token limits")
            if request.lane_prompts and len(request.lane_prompts) != len(self._points):
                raise InvalidRequest(f"lane_prompts has {len(request.lane_prompts)}; allowed: one per lane, or none")
            self._check_weights(request.weights)
        if not first.prompt_ids:
            raise InvalidRequest("the prompt is empty after tokenising", param="prompt")
        detokenizer = Detokenizer(self._decode, first.sampling.stop)
        if isinstance(first, ExactRequest):
            return self._exact(first, detokenizer, job)
        members = members_of(requests, self._points, time.perf_counter())
        job = Job() if job is None else job
        return Branch(first.prompt_ids, members, detokenizer, job, alone=len(requests) == 1)

    def _exact(self, request: ExactRequest, detokenizer: Detokenizer, asked: Job | None) -> Branch:
        """One branch for all mixes of the corners; it forks where the chosen token changes."""
        for corner in request.others:
            self._check_weights(corner)
        chooser: Exact = Regions(request) if isinstance(request, MapRequest) else Segments(request)
        any_has = tuple(float(any(weights)) for weights in zip(*request.corners, strict=True))
        (whole,) = members_of([replace(request, weights=any_has)], self._points, time.perf_counter())
        whole.request = request
        job = Job(None if asked is None else asked.client, request.most_slots)
        return Branch(request.prompt_ids, [chooser.part(whole)], detokenizer, job, chooser)

    def _check_weights(self, weights: Sequence[float]) -> None:
        if len(weights) != len(self._points) or not any(weights):
            raise InvalidRequest(
                f"weights has {len(weights)} numbers; allowed: {len(self._points)}, one per lane, not all 0",
                param="weights",
            )


def draw_seed() -> int:
    """A fresh seed, for a request that names none."""
    return secrets.randbelow(_DRAWN_SEEDS)


def _seeded(request: Request, seed: int) -> Request:
    return replace(request, sampling=replace(request.sampling, seed=seed))


def _shape(request: Request) -> tuple[object, ...]:
    return (request.prompt_ids, request.sampling.stop, request.sampling.max_new_tokens)
