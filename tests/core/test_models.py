"""Loading bases: what is supported loads from any safetensors layout, the rest is refused by name."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5ForConditionalGeneration

from emorl_core.adapters.adapter import read_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR
from tests.builders import OBJECTIVES, tiny_t5
from tests.core.bases import INDEX, WEIGHTS, edit_config, edit_weights, load, refusal
from tests.core.driving import prefilled, rows_of


@pytest.fixture
def base(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a sound base, to be changed."""
    return Path(shutil.copytree(plain_bundle / BASE_DIR, tmp_path / "base"))


@pytest.mark.parametrize("kind", ["umt5", "bart", "longt5", "llama", "gpt2", None])
def test_another_architecture_is_refused_by_name_with_what_works(kind: str | None, base: Path) -> None:
    message = refusal(edit_config(base, lambda config: config.update(model_type=kind)))
    assert repr(kind) in message
    assert all(name in message for name in ("T5 v1.0", "T5 1.1", "FLAN-T5", "mT5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(feed_forward_proj="gated-silu"), "feed_forward_proj is 'gated-silu'; allowed: relu, gated-gelu"),
        (lambda c: c.update(architectures=["T5EncoderModel"]), "T5EncoderModel"),
        (lambda c: c.update(architectures=["T5Model"]), "T5Model"),
        (lambda c: c.pop("d_model"), "key 'd_model' is missing"),
        (lambda c: c.pop("num_layers"), "key 'num_layers' is missing"),
        (lambda c: c.update(d_model=40), "the config asks for"),
        (lambda c: c.update(num_layers=3), "the checkpoint has no tensor 'encoder.block.2."),
    ],
)  # fmt: skip
def test_a_config_that_this_code_does_not_implement_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, base: Path
) -> None:
    assert message in refusal(edit_config(base, change))


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[]", "must be a JSON object")])
def test_a_config_that_is_no_object_is_refused(text: str, message: str, base: Path) -> None:
    (base / "config.json").write_text(text)
    assert message in refusal(base)


def test_a_generation_config_that_cannot_be_read_is_refused(base: Path) -> None:
    (base / "generation_config.json").write_text("{")
    assert "generation_config.json: cannot be read as JSON" in refusal(base)


def test_a_folder_without_a_config_is_refused(base: Path) -> None:
    (base / "config.json").unlink()
    assert "no config.json; a base is a Hugging Face checkpoint folder" in refusal(base)


def test_a_checkpoint_of_pickles_is_refused_and_never_opened(base: Path) -> None:
    (base / WEIGHTS).rename(base / "was")
    assert "no model.safetensors and no model.safetensors.index.json" in refusal(base)
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    assert "pytorch_model.bin is a pickle, which is not loaded: save it as safetensors first" in refusal(base)


def test_a_checkpoint_that_cannot_be_read_is_refused(base: Path) -> None:
    (base / WEIGHTS).write_bytes(b"nothing of the kind")
    assert "cannot be read as safetensors" in refusal(base)


def test_a_tensor_that_is_missing_or_has_another_shape_is_named(base: Path) -> None:
    name = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    edit_weights(base, lambda t: t.update({name: torch.ones(3, 4)}))
    assert f"tensor {name!r} has shape (3, 4); the config asks for (32, 64)" in refusal(base)
    edit_weights(base, lambda t: t.pop(name))
    assert f"the checkpoint has no tensor {name!r}" in refusal(base)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"shared.weight": "../elsewhere.safetensors"}}'])
def test_an_index_that_makes_no_sense_is_refused(index: str, base: Path) -> None:
    shutil.copy(base / WEIGHTS, base.parent / "elsewhere.safetensors")
    (base / INDEX).write_text(index)
    assert INDEX in refusal(base)


def test_a_checkpoint_in_several_files_is_the_same_model(plain_bundle: Path, tmp_path: Path) -> None:
    whole = plain_bundle / BASE_DIR
    T5ForConditionalGeneration.from_pretrained(whole).save_pretrained(tmp_path / "split", max_shard_size="40KB")
    assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 2
    one, split = load(whole), load(tmp_path / "split")
    prompt = [5, 9, 33, 1]
    assert torch.equal(prefilled(one, [prompt], [0])[0].kv, prefilled(split, [prompt], [0])[0].kv)
    hidden = torch.ones(1, 32)
    assert torch.equal(one.head(hidden), split.head(hidden))
    (next((tmp_path / "split").glob("model-*.safetensors"))).unlink()
    assert "cannot be read as safetensors" in refusal(tmp_path / "split")


def test_the_special_tokens_come_from_the_generation_config_then_the_config(base: Path) -> None:
    (base / "generation_config.json").unlink()
    edit_config(base, lambda c: c.update(eos_token_id=7, decoder_start_token_id=4, pad_token_id=3))
    model = load(base)
    assert (model.facts.eos_token_ids, model.start_token_id) == ((7,), 4)
    (base / "generation_config.json").write_text('{"eos_token_id": [1, 9], "decoder_start_token_id": 5}')
    model = load(base)
    assert (model.facts.eos_token_ids, model.start_token_id) == ((1, 9), 5)
    (base / "generation_config.json").write_text("{}")
    edit_config(base, lambda c: c.pop("decoder_start_token_id"))
    assert load(base).start_token_id == 3  # as T5 does: the padding token begins


@pytest.mark.parametrize("gated", [False, True])
def test_parameter_bytes_are_those_of_the_files(gated: bool, tmp_path: Path, plain_bundle: Path) -> None:
    folder = tiny_t5(tmp_path / "base", gated=gated)
    parameters = sum(p.numel() for p in T5ForConditionalGeneration.from_pretrained(folder).parameters())
    assert load(folder).parameter_bytes() == {"base": 4 * parameters, "adapters": 0}
    assert load(folder, torch.bfloat16).parameter_bytes() == {"base": 2 * parameters, "adapters": 0}


def test_parameter_bytes_of_adapters_count_the_padding(plain_bundle: Path) -> None:
    model = load(plain_bundle / BASE_DIR)
    adapters = [read_peft(plain_bundle / ADAPTERS_DIR / name, name) for name in OBJECTIVES]
    model.attach(adapters)
    largest = max(adapters, key=lambda adapter: adapter.parameters)
    assert model.parameter_bytes()["adapters"] == 3 * 4 * largest.parameters  # all padded to the largest rank
    assert model.adapters == OBJECTIVES


def test_bfloat16_follows_float32_from_afar(plain_bundle: Path) -> None:
    """Loose on purpose: 8 bits of mantissa through five blocks; a wrong formula would be off by whole units."""
    prompt, ids = [5, 9, 33, 60, 1], torch.tensor([[0, 7, 9, 11]])
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load(plain_bundle / BASE_DIR, dtype)
        model.attach([read_peft(plain_bundle / ADAPTERS_DIR / "empathy", "empathy")])
        cache = model.new_cache()
        cache.insert(prefilled(model, [prompt], [1])[0])
        out = model.head(model.step(ids, rows_of(model, [1]), cache)[0])
        assert out.dtype == torch.float32
        logits.append(out)
    error = (logits[0] - logits[1]).abs()
    assert 0 < error.mean() < 0.15 * logits[0].std()


def test_replies_to_one_source_share_its_keys_and_values(plain_bundle: Path) -> None:
    """`decode` with k rows per source = k sources repeated: what training relies on."""
    model = load(plain_bundle / BASE_DIR)
    prompts = [[5, 9, 33, 60, 1], [7, 1]]
    memories = prefilled(model, prompts, [0, 0])
    cross = torch.stack([torch.nn.functional.pad(m.kv, (0, 0, 0, 5 - m.kv.shape[3])) for m in memories], dim=2)
    ids = torch.randint(2, model.facts.vocab_size, (6, 8), generator=torch.Generator().manual_seed(0))
    index = rows_of(model, [0] * 6)
    shared = model.decode(ids, cross, [5, 2], index)
    repeated = model.decode(ids, cross.repeat_interleave(3, dim=2), [5, 5, 5, 2, 2, 2], index)
    torch.testing.assert_close(shared, repeated)


def test_prefill_splits_a_crowd_into_batches_without_a_difference(
    plain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(plain_bundle / BASE_DIR)
    prompts = [[*range(3, 3 + n), 1] for n in (2, 30, 7, 1, 64, 12, 5)]
    whole = prefilled(model, prompts, [0] * 7)
    monkeypatch.setattr("emorl_core.models.t5.model._PREFILL_TOKENS", 40)
    for one, other in zip(whole, prefilled(model, prompts, [0] * 7), strict=True):
        assert one.kv.shape == other.kv.shape
        torch.testing.assert_close(one.kv, other.kv, atol=1e-5, rtol=1e-4)


def test_distances_beyond_the_last_bucket_run(plain_bundle: Path) -> None:
    """Relative positions have no end: far more tokens than the cache's first capacity, step by step = at once."""
    model = load(plain_bundle / BASE_DIR)
    assert model.facts.max_positions is None
    ids = torch.randint(2, model.facts.vocab_size, (1, 150), generator=torch.Generator().manual_seed(0))
    lanes = rows_of(model, [0])
    memory = prefilled(model, [[5, 6, 1]], [0])[0]
    cache = model.new_cache()
    cache.insert(memory)
    steps = torch.cat([model.step(ids[:, t : t + 1], lanes, cache) for t in range(150)], dim=1)
    whole = model.decode(ids, memory.kv.unsqueeze(2), [3], lanes)
    torch.testing.assert_close(steps, whole, atol=1e-3, rtol=1e-3)
