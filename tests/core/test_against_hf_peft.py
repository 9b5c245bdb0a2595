"""Golden tests: the engine against separate Hugging Face models under PEFT, tiny and random, in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig, T5ForConditionalGeneration

from emorl_core.adapters.adapter import read_peft
from emorl_core.adapters.npz import read_npz
from emorl_core.adapters.writer import write_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR
from emorl_core.engine.engine import Engine
from emorl_core.ensemble import Ensemble
from emorl_core.models.registry import load_model
from emorl_core.models.t5.model import T5
from emorl_core.types import Request, Sampling
from tests.builders import OBJECTIVES, outdated_peft, tiny_adapter, tiny_t5
from tests.core.conftest import PROMPTS
from tests.core.driving import prefilled, rows_of, run
from tests.core.reference import SeparateModels

MIXES = (  # base, reflection, empathy, fluency; the last two are used as they are
    (0.0, 0.7, 0.3, 0.0),
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
    (0.25, 0.25, 0.25, 0.25),
    (0.0, 1.9, 0.4, 1.1),
    (0.3, -0.5, 1.2, 0.4),
)
LOGITS: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}


def t5_of(ensemble: Ensemble) -> T5:
    model = ensemble.engine.model
    assert isinstance(model, T5)
    return model


def as_requests(rows: Sequence[tuple[tuple[int, ...], tuple[float, ...]]], **sampling: Any) -> list[Request]:
    settings = Sampling(**sampling)
    return [Request(str(i), ids, weights, settings, stream=False) for i, (ids, weights) in enumerate(rows)]


def test_against_hf_peft_greedy_tokens_are_those_of_separate_models(ensemble: Ensemble, judge: SeparateModels) -> None:
    """Prompts of different lengths and different mixes in one ragged batch, against the published loop."""
    rows = [(ensemble.encode(prompt), mix) for prompt in PROMPTS for mix in MIXES]
    assert len({len(ids) for ids, _ in rows}) == len(PROMPTS)
    done = run(ensemble.engine, as_requests(rows, max_new_tokens=20))
    expected = judge.greedy([ids for ids, _ in rows], [mix for _, mix in rows], 20)
    assert [completion.token_ids for completion in done] == expected
    assert len(set(expected)) > len(PROMPTS) * len(MIXES) // 2, "the judge's texts must differ, or this proves nothing"
    assert len({completion.finish_reason for completion in done}) == 2  # some end by themselves, some at the limit


@pytest.mark.parametrize("way", ["whole sequence", "in steps of one", "in steps of three"])
def test_against_hf_peft_logits_of_every_lane_agree(way: str, ensemble: Ensemble, judge: SeparateModels) -> None:
    """Teacher forcing, every lane, ragged prompts: `decode` without a cache and `step` with one."""
    model = t5_of(ensemble)
    prompts = [ensemble.encode(prompt) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(7)
    decoder_ids = torch.randint(2, model.facts.vocab_size, (len(prompts), 21), generator=generator)
    decoder_ids[:, 0] = 0
    expected = judge.head(judge.hidden(prompts, decoder_ids))  # [N, B, T, V]
    lanes = torch.arange(4).repeat_interleave(len(prompts))
    ids, rows = decoder_ids.repeat(4, 1), rows_of(model, lanes)
    memories = prefilled(model, prompts * 4, lanes.tolist())
    if way == "whole sequence":
        longest = max(memory.kv.shape[3] for memory in memories)
        cross = torch.stack(
            [torch.nn.functional.pad(m.kv, (0, 0, 0, longest - m.kv.shape[3])) for m in memories], dim=2
        )
        hidden = model.decode(ids, cross, [m.kv.shape[3] for m in memories], rows)
    else:
        size = 1 if way == "in steps of one" else 3
        cache = model.new_cache()
        for memory in memories:
            cache.insert(memory)
        hidden = torch.cat([model.step(ids[:, t : t + size], rows, cache) for t in range(0, 21, size)], dim=1)
    logits = model.head(hidden.reshape(-1, hidden.shape[-1])).view(4, len(prompts), 21, -1)
    torch.testing.assert_close(logits, expected, **LOGITS)


def test_against_hf_peft_mixed_logits_and_logprobs_agree(ensemble: Ensemble, judge: SeparateModels) -> None:
    """What the engine reports (chosen and top log-probabilities) is what the judge's mixed logits say."""
    rows = [(ensemble.encode(PROMPTS[i % len(PROMPTS)]), mix) for i, mix in enumerate(MIXES)]
    requests = [
        Request(str(i), ids, mix, Sampling(max_new_tokens=12), top_logprobs=5) for i, (ids, mix) in enumerate(rows)
    ]
    for completion, (ids, mix) in zip(run(ensemble.engine, requests), rows, strict=True):
        decoder_ids = torch.tensor([[0, *completion.token_ids[:-1]]])
        logprobs = judge.mixed_logits([ids], torch.tensor([mix]), decoder_ids)[0].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), chosen, **LOGITS)
        best = logprobs.topk(5, dim=-1)
        reported = torch.tensor([[value for _, value in step] for step in completion.top_logprobs])
        torch.testing.assert_close(reported, best.values, **LOGITS)
        for step, token in zip(completion.top_logprobs, completion.token_ids, strict=True):
            assert step[0][0] == token


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.4}, {"min_new_tokens": 12}, {"repetition_penalty": 0.8, "min_new_tokens": 9}],
    ids=["plain", "penalty", "minimum", "both"],
)
def test_against_hf_generate_the_base_lane_alone(
    options: dict[str, Any], ensemble: Ensemble, judge: SeparateModels
) -> None:
    """The library's own generation loop, its repetition penalty and its minimum length."""
    base = judge.models[0]
    settings = GenerationConfig(
        max_new_tokens=14,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
        use_cache=False,  # its cache counts the encoder's layers
        **options,
    )
    for prompt in PROMPTS[:4]:
        ids = ensemble.encode(prompt)
        out = base.generate(torch.tensor([ids]), generation_config=settings)[0].tolist()  # type: ignore[operator]
        done = ensemble.generate(prompt, weights={"base": 1}, max_new_tokens=14, **options)
        assert done.token_ids == tuple(out[1:])


def test_against_hf_mt5_whose_head_is_never_scaled(tmp_path: Path) -> None:
    """transformers 5 writes mT5 configs as tied although the head is neither tied nor scaled."""
    folder = tiny_t5(tmp_path / "base", gated=True)
    written = json.loads((folder / "config.json").read_text())
    written |= {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
    adapter = tiny_adapter(folder, tmp_path / "adapter", 3, 6, 5)
    for tied in (True, False):
        (folder / "config.json").write_text(json.dumps({**written, "tie_word_embeddings": tied}))
        judge = SeparateModels(folder, [adapter])
        assert type(judge.models[0]).__name__ == "MT5ForConditionalGeneration"
        model = load_model(folder, device=torch.device("cpu"), dtype=torch.float32)
        model.attach([read_peft(adapter, "one")])
        engine = Engine(model, lambda ids: " ".join(map(str, ids)), ("base", "one"))
        prompt = (5, 9, 33, 60, 1)
        requests = [Request("x", prompt, (0.4, 0.6), Sampling(max_new_tokens=10), top_logprobs=3)]
        (done,) = run(engine, requests)
        assert [done.token_ids] == judge.greedy([prompt], [(0.4, 0.6)], 10)
        logprobs = judge.mixed_logits([prompt], torch.tensor([(0.4, 0.6)]), torch.tensor([[0]]))[0, -1].log_softmax(-1)
        torch.testing.assert_close(torch.tensor(done.logprobs[0]), logprobs[done.token_ids[0]], **LOGITS)


def test_against_hf_the_head_of_a_checkpoint_that_transformers_5_wrote(tmp_path: Path) -> None:
    """Re-saved by transformers 5, an untied model says `scale_decoder_outputs: false` and `tie_word_embeddings: true`."""
    old = tiny_t5(tmp_path / "old", gated=True)
    T5ForConditionalGeneration.from_pretrained(old).save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["tie_word_embeddings"] is True
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    expected = SeparateModels(tmp_path / "new", []).head(hidden)
    for folder in (old, tmp_path / "new"):
        model = load_model(folder, device=torch.device("cpu"), dtype=torch.float32)
        torch.testing.assert_close(model.head(hidden), expected, **LOGITS)
        rows = model.head_rows(torch.arange(model.facts.vocab_size))
        torch.testing.assert_close(hidden @ rows.t(), expected, **LOGITS)


def write_npz(folder: Path, path: Path) -> None:
    """The authors' format, from a real PEFT model: `<module>_loraA`, `_loraB`, `_scaling` of each LoRA layer."""
    import numpy as np

    base = folder.parent.parent / BASE_DIR
    with outdated_peft():
        model = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), folder)
    arrays = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            arrays[f"{name}_loraA"] = module.lora_A["default"].weight.detach().numpy()
            arrays[f"{name}_loraB"] = module.lora_B["default"].weight.detach().numpy()
            arrays[f"{name}_scaling"] = np.asarray(module.scaling["default"])
    np.savez(path, **arrays)


def test_against_peft_an_npz_gives_the_tokens_of_the_same_adapter(bundle: Path, tmp_path: Path) -> None:
    """And what is written from it as a PEFT folder gives them too."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    for name in OBJECTIVES:
        write_npz(bundle / ADAPTERS_DIR / name, tmp_path / f"{name}.npz")
        shutil.rmtree(copy / ADAPTERS_DIR / name)
        write_peft(read_npz(tmp_path / f"{name}.npz", name), copy / ADAPTERS_DIR / name)
    peft, npz = (Ensemble.load(where, device="cpu", dtype="float32") for where in (bundle, copy))
    for weights in ({"reflection": 1}, {"empathy": 1}, {"fluency": 1}, None):
        ours = [done.token_ids for done in peft.generate(list(PROMPTS), weights=weights, max_new_tokens=12)]
        theirs = [done.token_ids for done in npz.generate(list(PROMPTS), weights=weights, max_new_tokens=12)]
        assert ours == theirs


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_against_peft_a_folder_we_wrote_loads_with_the_same_logits(
    objective: str, bundle: Path, judge: SeparateModels, tmp_path: Path
) -> None:
    """Ranks and scales that differ between modules survive in rank_pattern and alpha_pattern."""
    write_peft(read_peft(bundle / ADAPTERS_DIR / objective, objective), tmp_path / objective)
    ours = SeparateModels(bundle / BASE_DIR, [tmp_path / objective])
    prompts = [(5, 9, 33, 60, 1), (40, 1)]
    decoder_ids = torch.tensor([[0, 7, 8, 9], [0, 3, 60, 2]])
    hidden = ours.hidden(prompts, decoder_ids)[1]
    expected = judge.hidden(prompts, decoder_ids)[1 + OBJECTIVES.index(objective)]
    torch.testing.assert_close(hidden, expected)
    assert not torch.allclose(hidden, judge.hidden(prompts, decoder_ids)[0], atol=0.1), "the adapter must matter"
