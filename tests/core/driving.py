"""Driving an engine by hand: requests in, events or completions out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from emorl_core.bundles.bundle import PromptSpec
from emorl_core.cache.kv import Memory
from emorl_core.engine.engine import Engine
from emorl_core.ensemble import Ensemble
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane, lane_points
from emorl_core.models.family import LaneModel, Piece
from emorl_core.types import Completion, Event, Failure, Request, TokenEvent

Steps = Callable[[int], None]


def prefilled(model: LaneModel, prompts: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[Memory]:
    """Prompt i read in the lane of this number, 0 for the base."""
    points = lane_points(len(model.adapters))
    return read_whole(model, [Lane(points[i], tuple(prompt)) for prompt, i in zip(prompts, lanes, strict=True)])


def read_whole(model: LaneModel, lanes: Sequence[Lane]) -> list[Memory]:
    """What each lane reads of its prompt, at once."""
    return model.prefill([Piece.whole(model.passage(lane, ())) for lane in lanes])


def poison(model: LaneModel, prompt_ids: Sequence[int]) -> None:
    """From now on, what an encoder makes of this prompt is not a number."""
    prefill = model.prefill

    def broken(pieces: Sequence[Piece]) -> list[Memory]:
        lanes = [piece.passage.labels[0] for piece in pieces]
        return [
            Memory(torch.full_like(memory.kv, float("nan"))) if lane.prompt_ids == tuple(prompt_ids) else memory
            for lane, memory in zip(lanes, prefill(pieces), strict=True)
            if isinstance(lane, Lane)
        ]

    model.prefill = broken  # type: ignore[method-assign]


def rows_of(model: LaneModel, lanes: Sequence[int] | Tensor) -> LaneIndex:
    """Lane rows by number, for `step`."""
    return one_hot(torch.as_tensor(lanes, device=model.facts.device), len(model.adapters))


def one_hot(lanes: Tensor, adapters: int) -> LaneIndex:
    """lanes: [M] lane numbers, 0 for the base."""
    return LaneIndex((lanes.unsqueeze(1) == torch.arange(1, adapters + 1, device=lanes.device)).float())


def drain(engine: Engine, before_step: Steps | None = None) -> list[Event]:
    """Step until nothing is left; `before_step(i)` may add and cancel."""
    events: list[Event] = []
    step = 0
    if before_step is not None:
        before_step(step)
    while engine.has_work:
        events += engine.step()
        step += 1
        if before_step is not None:
            before_step(step)
    return events


def completions(events: Iterable[Event]) -> dict[str, Completion]:
    """By request id; fails when one request completed twice."""
    done = [event for event in events if isinstance(event, Completion)]
    assert len({completion.request_id for completion in done}) == len(done), "a request completed twice"
    return {completion.request_id: completion for completion in done}


def failures(events: Iterable[Event]) -> dict[str, Failure]:
    return {event.request_id: event for event in events if isinstance(event, Failure)}


def token_events(events: Iterable[Event], request_id: str) -> list[TokenEvent]:
    return [event for event in events if isinstance(event, TokenEvent) and event.request_id == request_id]


def run(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """All requests at once; completions in the order of the requests. Every request must complete."""
    for request in requests:
        engine.add(request)
    done = completions(drain(engine))
    return [done[request.request_id] for request in requests]


def said(completion: Completion) -> tuple[object, ...]:
    """What must not depend on the company a request runs in. Log-probabilities are left out: float sums of another
    batch shape differ in the last bits."""
    return (completion.token_ids, completion.text, completion.token_texts, completion.finish_reason, completion.seed)


def joining(ensemble: Ensemble, requests: Sequence[Request]) -> dict[str, tuple[object, ...]]:
    """What the requests say, by id, when a third of them is there at first and the others come one at a time. None may
    fail, nor a step."""
    waiting = list(requests)

    def before_step(step: int) -> None:
        for _ in range(max(1, len(requests) // 3) if step == 0 else 1):
            if waiting:
                ensemble.engine.add(waiting.pop(0))

    events = drain(ensemble.engine, before_step)
    while waiting:
        events += drain(ensemble.engine, before_step)
    assert not failures(events)
    assert ensemble.engine.faults == 0, ensemble.engine.last_fault
    return {name: said(completion) for name, completion in completions(events).items()}


PROMPTS = (
    "I can't keep up at work.",
    "my mother left",
    "Zürich 🙂 is cold, and so am I",
    "i drink",
    "you feel tired of it, I hope things will get better",
    "nobody listens to me at home and I want to change but I do not know how to start",
)


# An objective with an adapter that has a prompt of its own too, and two that are prompts alone; ends and lengths differ.
SENTENCES = {
    "empathy": PromptSpec(template="so much {prompt} hurts [SEP] "),
    "warm": PromptSpec(template="{prompt} tired"),
    "cold": PromptSpec(template="you feel {prompt} [SEP] "),
}


def mixed_requests(ensemble: Ensemble, count: int, seed: int, *, longest: int = 24) -> list[Request]:
    """Requests of mixed prompts, lengths, weights, combine modes and sampling, some with stop strings; seeded."""
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        lanes = draw.sample(ensemble.lanes, draw.randint(1, len(ensemble.lanes)))
        length = draw.randint(1, longest)
        options: dict[str, Any] = draw.choice(
            [
                {},
                {"repetition_penalty": draw.uniform(0.8, 2.0)},
                {"temperature": draw.uniform(0.3, 1.5)},
                {"temperature": 1.0, "top_k": draw.randint(1, 40)},
                {"temperature": 0.8, "top_p": draw.uniform(0.3, 0.95)},
                {"temperature": 1.0, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
                {"presence_penalty": draw.uniform(-1, 2), "frequency_penalty": draw.uniform(-1, 2)},
                {"no_repeat_ngram_size": draw.randint(1, 3), "logit_bias": {draw.randint(3, 40): draw.uniform(-9, 9)}},
                {"temperature": 1.2, "min_p": draw.uniform(0.0, 0.3), "frequency_penalty": 0.5},
            ]
        )
        if draw.random() < 0.3:
            options["min_new_tokens"] = draw.randint(0, length)
        if draw.random() < 0.3:
            options["stop"] = draw.choice([("e",), (" w", "at"), (" keep",)])
        requests.append(
            ensemble.request(
                draw.choice(PROMPTS),
                weights={lane: draw.uniform(0.1, 1.0) for lane in lanes},
                combine="probs" if draw.random() < 0.15 else "hidden",
                max_new_tokens=length,
                seed=draw.randint(0, 2**63 - 1),
                stream=draw.random() < 0.5,
                request_id=f"r{number}",
                **options,
            )
        )
    return requests


def alone(ensemble: Ensemble, requests: Sequence[Request]) -> list[Completion]:
    """Each request by itself, one after the other."""
    return [run(ensemble.engine, [request])[0] for request in requests]
