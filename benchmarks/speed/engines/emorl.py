"""This engine, driven as by the server: requests in, steps, events out."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks.speed.workload import EOS, Setup, Times, Work, check_length
from emorl_core.engine.driver import Driver
from emorl_core.ensemble import Ensemble
from emorl_core.lanes.lane import Lane, lane_points
from emorl_core.models.family import Piece
from emorl_core.types import Combine, Failure, Request, Sampling, TokenEvent

SECOND_TURN = 24  # tokens of a client's second turn
_OTHER = 1_000_000  # far from the seeds of other work


class Emorl:
    """A bundle with all its objectives, each with positive weight in every request."""

    COMPILE = False

    def __init__(self, setup: Setup) -> None:
        self._ensemble = Ensemble.load(
            setup.folder,
            device=setup.device,
            dtype=setup.dtype,
            quantize=setup.quantize,
            slots=setup.slots,
            compile=self.COMPILE,
        )
        self._objectives = setup.objectives

    def run(self, work: Work) -> Times:
        return self._run(work, [(0.0, *weights) for weights in work.weights(self._objectives)])

    def run_summed(self, work: Work) -> Times:
        """The same weights with `combine: weights`: one summed adapter per request."""
        return self._run(work, [(0.0, *weights) for weights in work.weights(self._objectives)], combine="weights")

    def run_base(self, work: Work) -> Times:
        """The base alone."""
        return self._run(work, [(1.0, *(0.0,) * self._objectives)] * work.requests)

    def run_second_turn(self, work: Work) -> Times:
        """A conversation of `source` tokens whose beginning was answered just before: the client's first turn, the
        reply of `new` tokens to it, and the client's second turn, whose answer is timed."""
        weights = [(0.0, *each) for each in work.weights(self._objectives)]
        conversations = work.prompts()
        begun = [[*prompt[: work.source - work.new - SECOND_TURN - 1], EOS] for prompt in conversations]
        first = self._run(replace(work, seed=work.seed + _OTHER), weights, prompts=begun)
        turns = [prompt[-SECOND_TURN:] for prompt in conversations]
        prompts = [[*before, *reply, *turn] for before, reply, turn in zip(begun, first.ids, turns, strict=True)]
        return self._run(work, weights, prompts=prompts)

    def _run(
        self,
        work: Work,
        weights: list[tuple[float, ...]],
        combine: Combine = "hidden",
        prompts: list[list[int]] | None = None,
    ) -> Times:
        """weights: per request one number per lane, the base's first."""
        engine = self._ensemble.engine
        sampling = Sampling(max_new_tokens=work.new, min_new_tokens=work.new, seed=work.seed)
        requests = [
            Request(f"{work.seed}-{work.weights_seed}-{i}", tuple(prompt), lanes, sampling, combine=combine)
            for i, (prompt, lanes) in enumerate(zip(prompts or work.prompts(), weights, strict=True))
        ]
        made: dict[str, list[int]] = {request.request_id: [] for request in requests}
        stamps: list[float] = []
        start = time.perf_counter()
        for event in Driver(engine).events([[request] for request in requests]):
            if isinstance(event, Failure):
                raise event.error
            if isinstance(event, TokenEvent):
                made[event.request_id].append(event.token_id)
                slowest = min(map(len, made.values()))
                if slowest > len(stamps):  # the step has generated a token for every request
                    stamps += [time.perf_counter() - start] * (slowest - len(stamps))
        ids = tuple(tuple(made[request.request_id]) for request in requests)
        for each in ids:
            check_length(len(each), work.new, "emorl")
        return Times(stamps[0], stamps[-1], work.new, tuple(stamps), ids)

    def prefill(self, work: Work) -> Times:
        """The model's share of the time to first token: prefill of the prompts in all lanes of all requests."""
        model = self._ensemble.engine.model
        _, *points = lane_points(self._objectives)
        lanes = [Lane(point, tuple(prompt)) for prompt in work.prompts() for point in points]
        pieces = [Piece.whole(model.passage(lane, ())) for lane in lanes]
        start = time.perf_counter()
        model.prefill(pieces)
        if model.facts.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Times(seconds, seconds, 0)

    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"dtype": self._ensemble.dtype, "parameter_bytes": self._ensemble.parameter_bytes()}
        kept = "" if self._ensemble.quantize == "off" else f"matrices in {self._ensemble.quantize}"
        settings = ", ".join(filter(None, ("compile" if self.COMPILE else "", kept)))
        return {**facts, "settings": settings} if settings else facts


class EmorlCompiled(Emorl):
    """The same with its decoding step compiled, as in `emorl serve --compile`: once for all sizes."""

    COMPILE = True
