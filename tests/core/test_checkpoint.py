"""Weights as they lie about in the wild: what transformers would load is loaded, what would be noise is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from emorl_core.bundles.bundle import BASE_DIR
from emorl_core.files.reading import is_lfs_pointer
from tests.builders import tiny_t5
from tests.core.bases import INDEX, LFS_POINTER, WEIGHTS, edit_config, edit_json, edit_weights, load, refusal
from tests.core.driving import prefilled, rows_of

SHARED, HEAD = "shared.weight", "lm_head.weight"
ENCODER, DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
MATRIX = "encoder.block.0.layer.0.SelfAttention.q.weight"
PROMPT, IDS = [5, 9, 33, 60, 1], [0, 7, 9]


@pytest.fixture
def base(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a sound base, to be changed."""
    return Path(shutil.copytree(plain_bundle / BASE_DIR, tmp_path / "base"))


def logits(folder: Path) -> Tensor:
    """[3, V] of the base alone."""
    model = load(folder)
    cache = model.new_cache()
    cache.insert(prefilled(model, [PROMPT], [0])[0])
    return model.head(model.step(torch.tensor([IDS]), rows_of(model, [0]), cache)[0])


def judged(folder: Path) -> Tensor:
    """The same by transformers."""
    model = T5ForConditionalGeneration.from_pretrained(folder, use_safetensors=True).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([PROMPT]), decoder_input_ids=torch.tensor([IDS])).logits[0]


def split(folder: Path) -> Path:
    """The same model in several files with an index."""
    T5ForConditionalGeneration.from_pretrained(folder).save_pretrained(folder / "new", max_shard_size="40KB")
    (folder / WEIGHTS).unlink()
    for path in (folder / "new").glob("model*"):
        path.rename(folder / path.name)
    return folder


# -- which files --------------------------------------------------------------------------------------------------


def test_an_index_that_was_left_behind_does_not_win_over_the_whole_file(base: Path, tmp_path: Path) -> None:
    """As transformers: `model.safetensors` first."""
    old = split(tiny_t5(tmp_path / "old", seed=9))
    for path in old.glob("model*"):
        shutil.copy(path, base / path.name)
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(base), logits(old), atol=1e-2)
    for path in base.glob("model-*.safetensors"):
        path.unlink()
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)


def test_an_index_may_name_another_of_its_files(base: Path) -> None:
    """transformers takes all that the files hold; which one holds it does not matter."""
    expected = logits(base)
    files = sorted(path.name for path in split(base).glob("model-*.safetensors"))
    holder = json.loads((base / INDEX).read_text())["weight_map"][MATRIX]
    other = next(name for name in files if name != holder)
    edit_json(base / INDEX, lambda index: index["weight_map"].update({MATRIX: other}))
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(base), expected)


def test_an_index_that_names_a_tensor_which_no_file_holds_is_refused(base: Path) -> None:
    name = next(split(base).glob("model-*.safetensors")).name
    edit_json(base / INDEX, lambda index: index["weight_map"].update({"elsewhere.weight": name}))
    assert refusal(base) == f"{INDEX}: says that {name} holds tensor 'elsewhere.weight', which it does not"


def test_a_tensor_in_two_files_is_refused(base: Path) -> None:
    one, two, *_ = sorted(split(base).glob("model-*.safetensors"))
    name = next(iter(load_file(one)))
    save_file({**load_file(two), name: load_file(one)[name] + 1}, two)
    assert refusal(base) == f"tensor {name!r} is in {one.name} and in {two.name}"


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "a\0b", "a" * 256, 7, None, ["x"]]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(base: Path, file: object) -> None:
    shutil.copy(base / WEIGHTS, base.parent / WEIGHTS)
    (base / WEIGHTS).unlink()
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {SHARED: file}}))
    assert refusal(base) == f"{INDEX}: must hold weight_map, tensor name -> file name in the same folder"


def test_a_file_that_the_config_names_is_the_one(base: Path, tmp_path: Path) -> None:
    """`transformers_weights`, before all others, as transformers reads it."""
    other = tiny_t5(tmp_path / "other", seed=9)
    shutil.copy(other / WEIGHTS, base / "other.safetensors")
    edit_config(base, lambda config: config.update(transformers_weights="other.safetensors"))
    torch.testing.assert_close(logits(base), logits(other))
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)
    for value in ("../base/model.safetensors", "other.bin", 3):
        edit_config(base, lambda config, value=value: config.update(transformers_weights=value))
        assert f"config.json: transformers_weights is {value!r}; allowed: a safetensors file" in refusal(base)


@pytest.mark.parametrize("name", [WEIGHTS, INDEX, "config.json", "generation_config.json"])
def test_a_pointer_of_git_lfs_is_called_that(base: Path, name: str) -> None:
    if name == INDEX:
        (base / WEIGHTS).unlink()
    (base / name).write_text(LFS_POINTER)
    message = refusal(base)
    assert name in message
    assert "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`" in message


def test_only_a_pointer_is_taken_for_one(base: Path, tmp_path: Path) -> None:
    for text, pointer in ((LFS_POINTER, True), ("", False), ("version 1\n", False), (LFS_POINTER + "x" * 1024, False)):
        (tmp_path / "file").write_text(text)
        assert is_lfs_pointer(tmp_path / "file") is pointer
    assert not is_lfs_pointer(base)
    assert not is_lfs_pointer(tmp_path / "nowhere")


# -- which tensors ------------------------------------------------------------------------------------------------

_QUANTISED: list[tuple[dict[str, Any], str]] = [
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "'bitsandbytes', load_in_8bit"),
    ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "load_in_4bit"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "'awq'"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
    ({"quantization_config": {"quant_method": "FP8", "activation_scheme": "dynamic"}}, "'FP8'"),
    ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, "'compressed-tensors'"),
    ({"quantization_config": {"quant_method": "quanto", "weights": "int8"}}, "'quanto'"),
    ({"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
    ({"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {}}}}, "'torchao'"),
    ({"quantization_config": {"quant_algo": "NVFP4"}}, "'NVFP4'"),
    ({"quantization_config": {"bits": 8}}, "method not named"),
    ({"quantization_config": "int8\nof some kind"}, "'int8\\nof some kind'"),
    ({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}, "'affine'"),
    ({"compression_config": {"format": "int-quantized"}}, "'int-quantized'"),
    ({"load_in_8bit": True}, "load_in_8bit"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "method"), _QUANTISED)
def test_a_quantised_base_is_refused_by_the_name_of_its_method(base: Path, entry: dict[str, Any], method: str) -> None:
    message = refusal(edit_config(base, lambda config: config.update(entry)))
    assert message.startswith(f"config.json: {next(iter(entry))} says that the weights are quantised ({method}")


@pytest.mark.parametrize("entry", [{"quantization_config": None}, {"quantization_config": {}}, {"load_in_8bit": False}])
def test_a_config_that_says_not_quantised_is_believed(base: Path, entry: dict[str, Any]) -> None:
    silent = logits(base)
    assert torch.equal(logits(edit_config(base, lambda config: config.update(entry))), silent)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.complex64, "C64"),
    ],
)
def test_a_tensor_in_a_format_that_is_no_plain_number_is_refused(base: Path, dtype: torch.dtype, name: str) -> None:
    edit_weights(base, lambda tensors: tensors.update({MATRIX: tensors[MATRIX].to(dtype)}))
    message = refusal(base)
    assert message.startswith(f"{WEIGHTS}: tensor {MATRIX!r} is stored as {name}; allowed: float64, float32, float16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_plain_format_loads(base: Path, dtype: torch.dtype) -> None:
    edit_weights(base, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    model = T5ForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([PROMPT]), decoder_input_ids=torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(base), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (f"{MATRIX}_scale", "; quantised bases are not supported"),
        (MATRIX.replace("weight", "SCB"), "; quantised bases are not supported"),
        (MATRIX.replace("weight", "weight.absmax"), "; quantised bases are not supported"),
        (MATRIX.replace("weight", "bias"), ""),
        ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", ""),  # every block its own: UMT5
        ("decoder.block.3.layer.0.SelfAttention.q.weight", ""),  # the config says three blocks
        ("classification_head.dense.weight", ""),
    ],
)
def test_a_tensor_without_a_place_in_the_model_is_refused(base: Path, name: str, hint: str) -> None:
    edit_weights(base, lambda tensors: tensors.update({name: torch.ones(2)}))
    assert refusal(base) == f"tensor {name!r} of the checkpoint has no place in this model{hint}"
    edit_weights(base, lambda tensors: tensors.update({"zzz": torch.ones(2)}))
    assert f"tensor {name!r} of the checkpoint and 1 more have no place" in refusal(base)


def test_the_bias_that_old_converters_wrote_is_passed_over(base: Path) -> None:
    expected = logits(base)
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    edit_weights(base, lambda tensors: tensors.update({name: torch.ones(32, 4)}))
    torch.testing.assert_close(logits(base), expected)
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)


# -- which embedding ----------------------------------------------------------------------------------------------


def stored_as(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        shared = tensors.pop(SHARED)
        tensors.update({name: shared.clone() for name in names})

    return change


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("names", [(ENCODER,), (DECODER,), (ENCODER, DECODER), (SHARED, ENCODER, DECODER)])
def test_an_embedding_under_another_of_its_names_is_found(tmp_path: Path, names: tuple[str, ...], gated: bool) -> None:
    base = edit_weights(tiny_t5(tmp_path / "base", gated=gated), stored_as(*names))
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("names", [(HEAD,), (DECODER, HEAD), (SHARED, HEAD)])
def test_a_tied_head_may_hold_the_embedding(base: Path, names: tuple[str, ...]) -> None:
    expected = logits(base)
    edit_weights(base, stored_as(*names))
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(base), expected)
    model = load(base)
    assert model.lm_head is model.embedding


@pytest.mark.parametrize("first", [SHARED, ENCODER, DECODER])
def test_a_head_that_differs_stays_a_head_of_its_own(base: Path, first: str) -> None:
    edit_weights(base, stored_as(first))
    edit_weights(base, lambda tensors: tensors.update({HEAD: tensors[first].flip(0).contiguous()}))
    torch.testing.assert_close(logits(base), judged(base), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("first", "name"), [(SHARED, ENCODER), (SHARED, DECODER), (ENCODER, DECODER)])
def test_two_embeddings_are_refused_by_name(base: Path, first: str, name: str) -> None:
    """transformers keeps them apart; here one embedding serves both stacks."""
    expected = judged(base)
    edit_weights(base, stored_as(first))
    edit_weights(base, lambda tensors: tensors.update({name: tensors[first] + 0.5}))
    assert not torch.allclose(judged(base), expected, atol=1e-2)
    assert refusal(base) == f"tensor {name!r} differs from {first!r}; allowed: one embedding for both stacks"


def test_no_embedding_at_all_is_refused(base: Path) -> None:
    edit_weights(base, stored_as())
    assert refusal(base) == f"the checkpoint has no tensor {SHARED!r}"
