"""Adapters summed in weight space as one lane: against PEFT's own sum, and beside requests that are mixed otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR
from emorl_core.engine.segments import SegmentsRequest
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.types import Request, Sampling
from tests.builders import OBJECTIVES, outdated_peft
from tests.core.conftest import PROMPTS
from tests.core.driving import completions, drain, run, said
from tests.core.test_causal_engine import engine_of
from tests.core.test_causal_golden import PROMPTS as CAUSAL_PROMPTS
from tests.core.test_causal_golden import adapters_of
from tests.supported_models import BY_NAME, tiny_causal

MIXES = (  # base and three adapters
    (0.0, 0.7, 0.3, 0.0),
    (0.25, 0.25, 0.25, 0.25),
    (0.0, 0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0, 0.0),
    (0.0, -0.4, 1.0, 0.9),
    (0.0, 0.2, 0.3, 0.5),
)
TOKENS = 12
END, PAD = 1, 0


class Sums:
    """PEFT's own sums of the adapters that have weight, in one model; the bare base where none has."""

    def __init__(self, model: Any, folders: Sequence[Path], *, encoder: bool) -> None:
        self._encoder = encoder
        with outdated_peft():
            self._model = PeftModel.from_pretrained(model, folders[0], adapter_name=folders[0].name)
            for folder in folders[1:]:
                self._model.load_adapter(folder, adapter_name=folder.name)
            for number, mix in enumerate(MIXES):
                used = {folder.name: weight for folder, weight in zip(folders, mix[1:], strict=True) if weight}
                if used:
                    self._model.add_weighted_adapter([*used], [*used.values()], f"sum {number}", combination_type="cat")
        self._model.eval()

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, ...]]:
        """Mix by mix; the end of sequence included. A decoder's prompts are read one by one, without padding."""
        batches = [prompts] if self._encoder else [[prompt] for prompt in prompts]
        found = []
        for number, mix in enumerate(MIXES):
            if any(mix[1:]):
                self._model.set_adapter(f"sum {number}")
            with nullcontext() if any(mix[1:]) else self._model.disable_adapter():
                found += [reply for batch in batches for reply in self._replies(batch, tokens)]
        return found

    @torch.inference_mode()
    def _replies(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, ...]]:
        """A plain loop over the whole sequences."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[PAD] * (longest - len(prompt))] for prompt in prompts])
        fixed: dict[str, torch.Tensor] = {}
        key, fed = "input_ids", ids
        if self._encoder:
            mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
            fixed = {"input_ids": ids, "attention_mask": mask}
            key, fed = "decoder_input_ids", torch.zeros(len(prompts), 1, dtype=torch.int64)
        before = fed.shape[1]
        for _ in range(tokens):
            out = self._model(**fixed, **{key: fed}, use_cache=False)
            fed = torch.cat([fed, out.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        rows = fed[:, before:].tolist()
        return [tuple(row[: row.index(END) + 1] if END in row else row) for row in rows]


def as_requests(prompts: Sequence[tuple[int, ...]], tokens: int) -> list[Request]:
    return [
        Request(f"{i} {j}", prompt, mix, Sampling(max_new_tokens=tokens), "weights")
        for j, mix in enumerate(MIXES)
        for i, prompt in enumerate(prompts)
    ]


def t5_expected(bundle: Path, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    folders = [bundle / ADAPTERS_DIR / name for name in OBJECTIVES]
    judge = Sums(AutoModelForSeq2SeqLM.from_pretrained(bundle / BASE_DIR), folders, encoder=True)
    return judge.greedy(prompts, TOKENS)


def test_against_peft_a_sum_of_adapters_of_t5(bundle: Path, ensemble: Ensemble) -> None:
    """The encoder's adapters as well: every mix and every prompt in one batch."""
    prompts = [ensemble.encode(prompt) for prompt in PROMPTS]
    done = run(ensemble.engine, as_requests(prompts, TOKENS))
    assert [completion.token_ids for completion in done] == t5_expected(bundle, prompts)
    assert len({completion.token_ids for completion in done}) > len(MIXES)  # and they are not all the same


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_against_peft_a_sum_of_adapters_of_a_decoder(name: str, tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", name)
    folders = adapters_of(BY_NAME[name], base, tmp_path)
    done = run(engine_of(base, folders), as_requests(CAUSAL_PROMPTS, 8))
    judge = Sums(AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), folders, encoder=False)
    assert [completion.token_ids for completion in done] == judge.greedy(CAUSAL_PROMPTS, 8)


def all_ways(ensemble: Ensemble, **sampling: Any) -> list[Request]:
    mixes = ({"reflection": 0.7, "empathy": 0.3}, {"base": 0.2, "empathy": 0.5, "fluency": 0.3}, {"fluency": 1.0})
    return [
        ensemble.request(prompt, weights=mix, combine=combine, request_id=f"{i} {j} {combine}", seed=5, **sampling)
        for i, prompt in enumerate(PROMPTS)
        for j, mix in enumerate(mixes)
        for combine in ("hidden", "probs", "weights")
    ]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}])
def test_all_ways_to_combine_in_one_batch_give_what_each_gives_alone(
    ensemble: Ensemble, sampling: dict[str, Any]
) -> None:
    requests = all_ways(ensemble, max_new_tokens=12, **sampling)
    together = run(ensemble.engine, requests)
    for request, completion in zip(requests, together, strict=True):
        assert said(run(ensemble.engine, [request])[0]) == said(completion)


@pytest.mark.both_shapes
def test_all_ways_to_combine_in_one_group_give_what_each_gives_alone() -> None:
    """They share their prompt, so one branch holds named lanes and sums; it forks where they differ."""
    ensemble = fake_ensemble()
    own = [r for r in all_ways(ensemble, max_new_tokens=12) if r.prompt_ids == ensemble.encode(PROMPTS[0])]
    alone = [said(run(fake_ensemble().engine, [request])[0]) for request in own]
    ensemble.engine.add_group(own)
    done = {event.request_id: event for event in _completions(ensemble)}
    assert [said(done[request.request_id]) for request in own] == alone


def _completions(ensemble: Ensemble) -> list[Any]:
    return list(completions(drain(ensemble.engine)).values())


@pytest.mark.both_shapes
def test_a_sum_is_one_lane_row() -> None:
    ensemble = fake_ensemble()
    weights = {"reflection": 0.5, "empathy": 0.2, "fluency": 0.3}
    for combine, lanes in (("hidden", 3), ("weights", 1)):
        done = ensemble.generate("hello", weights=weights, combine=combine, max_new_tokens=4, min_new_tokens=4)
        assert done.lane_row_steps == 4 * lanes
        assert done.weights == weights
    result = ensemble.sweep("hello", [weights, {"empathy": 1.0}], combine="weights")
    assert result.unshared_lane_row_steps == sum(len(item.token_ids) for item in result.items)


def test_one_objective_alone_is_its_named_lane(ensemble: Ensemble) -> None:
    """Both requests share its row, and its prompt is read once."""
    requests = [
        ensemble.request(PROMPTS[0], weights={"empathy": 1.0}, combine=combine, max_new_tokens=6)
        for combine in ("hidden", "weights")
    ]
    ensemble.engine.add_group(requests)
    one, two = _completions(ensemble)
    assert one.token_ids == two.token_ids
    assert one.lane_row_steps == len(one.token_ids)
    assert ensemble.engine.stats.prefill_misses == 1


def test_a_sweep_of_sums_gives_what_each_request_gives_alone(ensemble: Ensemble) -> None:
    swept = ensemble.sweep(PROMPTS[:2], resolution=2, combine="weights", max_new_tokens=10)
    for item in swept.items:
        own = ensemble.generate(PROMPTS[item.prompt_index], item.weights, combine="weights", max_new_tokens=10)
        assert own.token_ids == item.token_ids


def test_multiples_of_a_vector_are_other_sums() -> None:
    """Mixed logits scale, so greedy text is the same; a sum of adapters is another model."""
    ensemble = fake_ensemble()
    vectors = [{"reflection": 0.5, "empathy": 0.5}, {"reflection": 1.0, "empathy": 1.0}]
    for combine, requests in (("hidden", 1), ("weights", 2)):
        assert ensemble.sweep_plan("hello", vectors, normalize=False, combine=combine).requests == requests


def test_attribution_and_segments_are_refused_with_the_reason() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(
        InvalidRequest, match="attribution splits a mix of hidden states; with combine: weights"
    ) as info:
        ensemble.request("hello", combine="weights", attribution=True)
    assert info.value.param == "attribution"
    plain = ensemble.segments_request("hello", {"empathy": 1.0}, {"fluency": 1.0})
    assert isinstance(plain, SegmentsRequest)
    for combine in ("weights", "probs"):
        with pytest.raises(InvalidRequest, match=f"combine is '{combine}'; allowed for segments: hidden") as info:
            ensemble.engine.add(replace(plain, combine=combine))
        assert info.value.param == "combine"


def test_a_way_that_nobody_knows_is_refused_by_name() -> None:
    for call in (
        lambda: fake_ensemble().request("hello", combine="sum"),  # type: ignore[arg-type]
        lambda: fake_ensemble().sweep_plan("hello", resolution=2, combine="sum"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest, match="combine is 'sum'; allowed: hidden, probs, weights"):
            call()


def test_negative_weights_may_be_summed() -> None:
    done = fake_ensemble().generate(
        "hello", {"reflection": 1.5, "empathy": -0.5}, normalize=False, combine="weights", max_new_tokens=3
    )
    assert done.weights["empathy"] == -0.5
