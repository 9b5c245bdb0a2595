"""The facts the method stands on (method.md section 3), each of them on real tensors of a tiny T5 of either kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emorl_core import combine
from emorl_core.ensemble import Ensemble
from emorl_core.lanes.lane import Lane
from emorl_core.models.family import LaneModel
from emorl_core.types import Completion
from tests.core.conftest import PROMPTS
from tests.core.driving import prefilled, rows_of, run
from tests.core.reference import SeparateModels

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}
WEIGHTS = {"base": 0.5, "reflection": 1.25, "empathy": 0.25, "fluency": 2.0}


def start(model: LaneModel) -> int:
    """What T5's decoder is fed first."""
    (token,) = model.unread(Lane((0.0,) * len(model.adapters), (1,)), ())
    return token


def lanes_of(ensemble: Ensemble, prompt: str, tokens: tuple[int, ...]) -> Tensor:
    """Last hidden states of every lane for the positions that chose `tokens`: [N, T, D], fed at once."""
    model = ensemble.engine.model
    lanes = range(len(ensemble.lanes))
    cache = model.new_cache()
    for memory in prefilled(model, [ensemble.encode(prompt)] * len(lanes), list(lanes)):
        cache.insert(memory)
    ids = torch.tensor([[start(model), *tokens[:-1]]] * len(lanes))
    return model.step(ids, rows_of(model, list(lanes)), cache)


def test_mixing_hidden_states_is_mixing_raw_logits(ensemble: Ensemble) -> None:
    model = ensemble.engine.model
    hidden = lanes_of(ensemble, PROMPTS[0], tuple(range(20, 35))).transpose(0, 1)  # [T, N, D]
    for weights in ((0.25, 0.25, 0.25, 0.25), (0.0, 0.9, 0.1, 0.0), (1.0, -2.0, 0.5, 3.0)):
        w = torch.tensor([weights] * hidden.shape[0])
        one_head = model.head(combine.mix_hidden(hidden, w))
        each = torch.stack([model.head(hidden[:, n]) for n in range(4)], dim=1)  # [T, N, V]
        torch.testing.assert_close(one_head, torch.einsum("tn,tnv->tv", w, each), **CLOSE)
        assert not torch.allclose(one_head.log_softmax(-1), combine.mix_probs(each, w.abs()).log_softmax(-1), atol=0.01)


def test_what_step_by_step_chose_is_what_the_whole_sequence_at_once_says(ensemble: Ensemble) -> None:
    """Cached = uncached, through the engine: log-probabilities of a run against one pass over its tokens."""
    vector = torch.tensor(ensemble.resolve(WEIGHTS).vector)
    for prompt in PROMPTS:
        done = ensemble.generate(prompt, WEIGHTS, max_new_tokens=20)
        mixed = combine.mix_hidden(lanes_of(ensemble, prompt, done.token_ids).transpose(0, 1), vector.expand(1, 4))
        logprobs = ensemble.engine.model.head(mixed).log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == list(done.token_ids)
        chosen = logprobs.gather(1, torch.tensor(done.token_ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(done.logprobs), chosen, **CLOSE)


def test_a_lane_that_is_skipped_is_a_lane_with_weight_zero(ensemble: Ensemble) -> None:
    """A loop that runs all four lanes with zeros among the weights gives what the engine gives with two lanes."""
    model = ensemble.engine.model
    weights = torch.tensor([[0.0, 0.7, 0.3, 0.0]])
    before = ensemble.engine.stats
    done = ensemble.generate(PROMPTS[0], {"reflection": 0.7, "empathy": 0.3}, max_new_tokens=15, min_new_tokens=15)
    after = ensemble.engine.stats
    assert after.lane_row_steps - before.lane_row_steps == 2 * len(done.token_ids)
    assert after.prefill_misses - before.prefill_misses == 2

    cache = model.new_cache()
    for memory in prefilled(model, [ensemble.encode(PROMPTS[0])] * 4, [0, 1, 2, 3]):
        cache.insert(memory)
    lanes, tokens = rows_of(model, range(4)), [start(model)]
    for _ in done.token_ids:
        hidden = model.step(torch.tensor([[tokens[-1]]] * 4), lanes, cache)[:, 0]
        logits = model.head(combine.mix_hidden(hidden.unsqueeze(0), weights))[0]
        logits[list(model.facts.eos_token_ids)] = float("-inf")  # min_new_tokens
        tokens.append(int(logits.argmax()))
    assert tuple(tokens[1:]) == done.token_ids


def test_lanes_running_counts_only_lanes_that_somebody_uses(ensemble: Ensemble) -> None:
    engine = ensemble.engine
    seen = []
    for weights in ({"reflection": 1}, {"empathy": 1}, {"empathy": 2, "reflection": 1}):
        engine.add(ensemble.request("i drink", weights=weights, max_new_tokens=4, min_new_tokens=4))
        engine.step()
        seen.append(engine.stats.lanes_running)
    assert seen == [1, 2, 2]
    while engine.has_work:
        engine.step()
    assert engine.stats.lanes_running == 0


def test_a_lane_that_holds_nan_is_silent_at_weight_zero() -> None:
    hidden = torch.ones(1, 3, 4)
    hidden[0, 1] = float("nan")
    weights = torch.tensor([[0.5, 0.0, 0.25]])
    assert combine.mix_hidden(hidden, weights).tolist() == [[0.75] * 4]
    assert combine.attribute(hidden, weights, torch.ones(1, 4)).tolist() == [[2.0, 0.0, 1.0]]
    logits = torch.log_softmax(hidden, -1)
    assert torch.isfinite(combine.mix_probs(logits, weights)).all()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 5}, {"repetition_penalty": 1.5}])
def test_attribution_parts_sum_to_the_margin_of_the_logits(ensemble: Ensemble, options: dict[str, Any]) -> None:
    model = ensemble.engine.model
    vector = torch.tensor(ensemble.resolve(WEIGHTS).vector)
    done = ensemble.generate(PROMPTS[4], WEIGHTS, attribution=True, max_new_tokens=20, **options)
    assert len(done.attributions) == len(done.token_ids)
    lanes = lanes_of(ensemble, PROMPTS[4], done.token_ids)  # [N, T, D]
    each = torch.stack([model.head(lane) for lane in lanes])  # [N, T, V]
    mixed = torch.einsum("n,ntv->tv", vector, each)
    for t, (token, attribution) in enumerate(zip(done.token_ids, done.attributions, strict=True)):
        others = mixed[t].clone()
        others[token] = float("-inf")
        assert attribution.runner_up == int(others.argmax())
        margin = float(mixed[t, token] - mixed[t, attribution.runner_up])
        assert sum(attribution.parts) == pytest.approx(margin, abs=1e-4)
        assert attribution.margin == pytest.approx(margin, abs=1e-4)
        parts = vector * (each[:, t, token] - each[:, t, attribution.runner_up])
        torch.testing.assert_close(torch.tensor(attribution.parts), parts, **CLOSE)
    if not options:
        assert all(attribution.margin > 0 for attribution in done.attributions)


def test_attribution_gives_nothing_to_lanes_without_weight(ensemble: Ensemble) -> None:
    done = ensemble.generate(PROMPTS[0], {"empathy": 1}, attribution=True, max_new_tokens=5)
    for attribution in done.attributions:
        assert len(attribution.parts) == 4
        assert [part for lane, part in enumerate(attribution.parts) if lane != 2] == [0.0, 0.0, 0.0]


def test_greedy_does_not_change_when_all_weights_are_scaled(ensemble: Ensemble) -> None:
    def run_with(factor: float) -> list[Completion]:
        scaled = {name: weight * factor for name, weight in WEIGHTS.items()}
        return ensemble.generate(list(PROMPTS), scaled, normalize=False, max_new_tokens=20)

    texts = [[done.token_ids for done in run_with(factor)] for factor in (1.0, 0.125, 4.0, 1024.0)]
    assert texts.count(texts[0]) == len(texts)
    normalised = ensemble.generate(list(PROMPTS), WEIGHTS, max_new_tokens=20)
    assert [done.token_ids for done in normalised] == texts[0]


def test_the_weights_sum_is_an_inverse_temperature(ensemble: Ensemble) -> None:
    """When sampling, raw weights twice as large are a temperature half as high."""
    doubled = {name: 2 * weight for name, weight in WEIGHTS.items()}
    for seed in range(3):
        raw = ensemble.generate(PROMPTS[0], doubled, normalize=False, temperature=1.5, seed=seed, max_new_tokens=15)
        cold = ensemble.generate(PROMPTS[0], WEIGHTS, normalize=False, temperature=0.75, seed=seed, max_new_tokens=15)
        assert raw.token_ids == cold.token_ids


def test_combine_probs_is_the_log_of_the_weighted_probabilities(ensemble: Ensemble, judge: SeparateModels) -> None:
    """log sum_i w_i p_i, from the separate models' own distributions, in a batch with rows that mix hidden states."""
    mixes: dict[str, dict[str, float]] = {
        "a": {"reflection": 0.7, "fluency": 0.3},
        "b": {"base": 0.2, "empathy": 0.8},
        "c": dict.fromkeys(WEIGHTS, 1),
    }
    requests = [
        ensemble.request(
            PROMPTS[i], weights=mix, combine=mode, request_id=name + mode, top_logprobs=4, max_new_tokens=12
        )
        for i, (name, mix) in enumerate(mixes.items())
        for mode in ("hidden", "probs")
    ]
    done = run(ensemble.engine, requests)
    for request, completion in zip(requests, done, strict=True):
        if request.combine == "hidden":
            continue
        ids = torch.tensor([[0, *completion.token_ids[:-1]]])
        each = judge.head(judge.hidden([request.prompt_ids], ids))[:, 0].softmax(-1)  # [N, T, V]
        logprobs = torch.einsum("n,ntv->tv", torch.tensor(request.weights), each).log()
        assert logprobs.argmax(-1).tolist() == list(completion.token_ids)
        reported = torch.tensor([[value for _, value in step] for step in completion.top_logprobs])
        torch.testing.assert_close(reported, logprobs.topk(4, dim=-1).values, **CLOSE)
    assert done[0].token_ids != done[1].token_ids, "the two modes are not the same"
