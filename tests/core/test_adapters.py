"""Reading adapters: what lanes can represent exactly is read exactly, the rest is refused with the reason."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from emorl_core.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, LoraPair, read_npz, read_peft, write_peft
from emorl_core.bundle import ADAPTERS_DIR, BASE_DIR
from emorl_core.errors import AdapterError
from emorl_core.models.registry import load_model
from tests.builders import outdated_peft, tiny_adapter, tiny_t5

Q = "encoder.block.0.layer.0.SelfAttention.q"
KEY = f"base_model.model.{Q}.lora_A.weight"


@pytest.fixture
def base(plain_bundle: Path) -> Path:
    return plain_bundle / BASE_DIR


@pytest.fixture
def folder(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter, to be spoilt."""
    return Path(shutil.copytree(plain_bundle / ADAPTERS_DIR / "empathy", tmp_path / "spoilt"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        read_peft(folder, "empathy", **options)
    message = caught.value.message
    assert "'empathy'" in message, "the adapter is named"
    assert "\n" not in message
    assert str(folder.parent) not in message
    return message


def edit_config(folder: Path, **values: object) -> Path:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def test_a_sound_folder_is_read_with_every_module(plain_bundle: Path) -> None:
    adapter = read_peft(plain_bundle / ADAPTERS_DIR / "empathy", "empathy")
    assert len(adapter.modules) == 2 * (4 + 2) + 3 * (8 + 2)  # every linear layer of 2 encoder and 3 decoder blocks
    assert {pair.rank for pair in adapter.modules.values()} == {4}
    assert {pair.scale for pair in adapter.modules.values()} == {2.0}
    assert adapter.parameters == sum(
        t.numel() for t in load_file(plain_bundle / ADAPTERS_DIR / "empathy" / WEIGHTS_FILE).values()
    )
    assert adapter.base_name is not None


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora is set; DoRA rescales the base matrix"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set; it carries full copies of modules"),
        ({"targets": ["q", "lm_head"]}, "is a trained head"),
        ({"targets": ["q", "shared"]}, "not the LoRA weight of a linear layer"),
        ({"trainable_token_indices": [5, 6]}, "trainable_token_indices is set; it trains embeddings"),
        ({"bias": "all"}, "bias is 'all'; allowed: none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which moves the base's weights"),
        ({"init_lora_weights": "olora"}, "which moves the base's weights"),
        ({"targets": [], "target_parameters": ["q.weight"]}, "target_parameters is set; it adapts bare parameters"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_folder_that_peft_made_with_more_than_lora_is_refused(
    options: dict[str, Any], reason: str, base: Path, tmp_path: Path
) -> None:
    assert reason in refusal(tiny_adapter(base, tmp_path / "a", 2, 4, 0, **{"targets": ["q", "v"], **options}))


def test_another_kind_of_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with outdated_peft():
        model = get_peft_model(
            T5ForConditionalGeneration.from_pretrained(base),
            IA3Config(target_modules=["k", "v"], feedforward_modules=[], task_type="SEQ_2_SEQ_LM"),
        )
    model.save_pretrained(tmp_path / "a")
    assert "peft_type is 'IA3'; allowed: LORA" in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    "option",
    ["lora_bias", "use_qalora", "layer_replication", "use_bdlora",
     "arrow_config", "kasa_config", "monteclora_config", "velora_config", "megatron_config"],
)  # fmt: skip
def test_options_that_change_what_lora_computes_are_refused(option: str, folder: Path) -> None:
    assert f"{option} is set; " in refusal(edit_config(folder, **{option: [1]}))


def test_every_option_of_peft_is_one_we_know() -> None:
    """A new option of LoraConfig may change what an adapter computes: look at it, then add it here or refuse it."""
    import dataclasses

    from peft import LoraConfig

    from emorl_core.adapters import _REFUSED_OPTIONS

    understood = {
        "alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
        "eva_config", "fan_in_fan_out",
        "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "alpha_pattern", "lora_dropout", "lora_ga_config", "megatron_core",
        "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "task_type", "use_rslora", "bias",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(LoraConfig)} - understood == set(_REFUSED_OPTIONS)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "pissa_niter_16"])
def test_initialisations_that_move_the_base_are_refused(init: str, folder: Path) -> None:
    assert "which moves the base's weights; convert it to plain LoRA" in refusal(
        edit_config(folder, init_lora_weights=init)
    )


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_read(init: object, folder: Path) -> None:
    assert read_peft(edit_config(folder, init_lora_weights=init), "empathy").modules


@pytest.mark.parametrize(
    ("ours", "theirs", "fits"),
    [
        ("google-t5/t5-base", "google-t5/t5-base", True),
        ("google-t5/t5-base", "t5-base", True),  # the hub's old and new name
        ("google-t5/t5-base", "google-t5/t5-small", False),
        ("google/flan-t5-base", "t5-base", False),
        ("google-t5/t5-base", "/home/somebody/models/base", True),  # a folder says nothing
        ("google-t5/t5-base", None, True),
        (None, "t5-small", True),
    ],
)
def test_an_adapter_of_another_hub_base_is_refused(
    ours: str | None, theirs: str | None, fits: bool, folder: Path
) -> None:
    edit_config(folder, base_model_name_or_path=theirs)
    if fits:
        assert read_peft(folder, "empathy", expected_base=ours).base_name == theirs
    else:
        assert f"it was trained on base {theirs!r}; this bundle's base is {ours!r}" in refusal(
            folder, expected_base=ours
        )


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: t[KEY].__setitem__((0, 0), float("nan")), f"module {Q!r} holds NaN or inf"),
        (lambda t: t[KEY].__setitem__((0, 0), float("-inf")), f"module {Q!r} holds NaN or inf"),
        (lambda t: t.pop(KEY), f"module {Q!r} has lora_B alone; both factors are needed"),
        (lambda t: t.update({KEY: torch.ones(3, 32)}), "allowed: [r, in]"),
        (lambda t: t.update({KEY: torch.ones(4)}), "allowed: [r, in]"),
        (lambda t: t.update({KEY: torch.ones(0, 32), KEY.replace("_A", "_B"): torch.ones(32, 0)}), "allowed: [r, in]"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}), "is a trained head"),
        (lambda t: t.update({KEY.replace(Q, "lm_head"): torch.ones(1, 4), KEY.replace(Q, "lm_head").replace("_A", "_B"): torch.ones(4, 1)}),
         "it adapts the head (lm_head); mixing hidden states needs one head"),
        (lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(2)}), "not the LoRA weight of a linear layer"),
        (lambda t: t.update({"base_model.model.x.bias": torch.ones(2)}), "not the LoRA weight of a linear layer"),
        (lambda t: t.clear(), "it holds no LoRA weights"),
    ],
)  # fmt: skip
def test_weights_that_do_not_make_sense_are_refused(
    edit: Callable[[dict[str, Tensor]], object], reason: str, folder: Path
) -> None:
    assert reason in refusal(edit_weights(folder, edit))


@pytest.mark.parametrize("alpha", [None, "32", float("nan"), True])
def test_an_alpha_that_is_no_number_is_refused(alpha: object, folder: Path) -> None:
    assert "lora_alpha of module" in refusal(edit_config(folder, lora_alpha=alpha))


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    assert f"has no {WEIGHTS_FILE}" in refusal(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(print))
    assert "adapter_model.bin is a pickle, which is not loaded" in refusal(folder)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"not safetensors")
    assert f"{WEIGHTS_FILE} cannot be read" in refusal(folder)
    (folder / CONFIG_FILE).write_text("{")
    assert f"{CONFIG_FILE} cannot be read as JSON" in refusal(folder)
    (folder / CONFIG_FILE).write_text("[]")
    assert "must be a JSON object" in refusal(folder)
    (folder / CONFIG_FILE).unlink()
    assert f"has no {CONFIG_FILE}; it is a PEFT LoRA folder" in refusal(folder)


def attach(base: Path, *adapters: Adapter) -> None:
    load_model(base, device=torch.device("cpu"), dtype=torch.float32).attach(adapters)


def test_an_adapter_whose_shapes_do_not_fit_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    wider = tiny_t5(tmp_path / "wider", d_model=40)
    adapter = read_peft(tiny_adapter(wider, tmp_path / "a", 2, 4, 0, ["q"]), "empathy")
    with pytest.raises(AdapterError, match="maps 40 to 32 features; the base's maps 32 to 32; "):
        attach(base, adapter)


def test_an_adapter_with_modules_that_the_base_lacks_is_refused(base: Path, tmp_path: Path) -> None:
    """More layers, or the other kind of T5."""
    for number, (options, module) in enumerate([({"num_layers": 4}, "encoder.block.2"), ({"gated": True}, "wi_0")]):
        other = tiny_t5(tmp_path / f"base {number}", **options)  # type: ignore[arg-type]
        adapter = read_peft(tiny_adapter(other, tmp_path / f"a {number}", 2, 4, 0), "empathy")
        with pytest.raises(AdapterError, match="the base has no linear layer") as caught:
            attach(base, adapter)
        assert module in caught.value.message
        assert caught.value.param == "objectives.empathy.adapter"


def test_names_with_the_adapter_inside_are_read_too(folder: Path) -> None:
    """Some trainers save `lora_A.default.weight`."""
    before = read_peft(folder, "empathy")

    def rename(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    after = read_peft(edit_weights(folder, rename), "empathy")
    assert set(after.modules) == set(before.modules)


def test_patterns_follow_pefts_rule(folder: Path) -> None:
    """A key is a regular expression for the end of a path, from its start or after a dot; the first match counts."""
    patterns = {
        "block.0.layer.0.SelfAttention.q": 8,
        r"decoder\..*\.q": 12,
        "q": 20,
        "EncDecAttention.[kv]": 2,
        "ff": 99,
    }
    modules = read_peft(edit_config(folder, alpha_pattern=patterns), "empathy").modules
    scales = {name: pair.scale for name, pair in modules.items()}
    assert scales["encoder.block.0.layer.0.SelfAttention.q"] == 8 / 4
    assert scales["decoder.block.0.layer.0.SelfAttention.q"] == 8 / 4
    assert scales["decoder.block.1.layer.1.EncDecAttention.q"] == 12 / 4
    assert scales["encoder.block.1.layer.0.SelfAttention.q"] == 20 / 4
    assert scales["decoder.block.2.layer.1.EncDecAttention.v"] == 2 / 4
    assert scales["encoder.block.0.layer.1.DenseReluDense.wi"] == 8 / 4


def test_the_scale_is_alpha_over_rank_or_over_its_root(folder: Path) -> None:
    assert {pair.scale for pair in read_peft(edit_config(folder, lora_alpha=6), "x").modules.values()} == {6 / 4}
    assert {pair.scale for pair in read_peft(edit_config(folder, use_rslora=True), "x").modules.values()} == {6 / 2}


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def pair(rank: int, scale: float) -> LoraPair:
        return LoraPair(torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator), scale)

    modules = {
        Q: pair(2, 0.3),
        "m.q": pair(2, 0.3),
        "decoder.m.q": pair(3, 1.25),
        "block.10.q": pair(2, 7.0),
        "x": pair(1, 1.0),
    }
    adapter = Adapter("one", modules, "t5-base")
    write_peft(adapter, tmp_path / "new" / "folder", extra={"lora_dropout": 0.05})
    again = read_peft(tmp_path / "new" / "folder", "one")
    assert again.base_name == "t5-base"
    assert set(again.modules) == set(modules)
    for name, before in modules.items():
        after = again.modules[name]
        assert torch.equal(after.a, before.a)
        assert torch.equal(after.b, before.b)
        assert after.scale == pytest.approx(before.scale, rel=1e-12)
        torch.testing.assert_close(after.delta(), before.scale * before.b @ before.a)
    assert json.loads((tmp_path / "new" / "folder" / CONFIG_FILE).read_text())["lora_dropout"] == 0.05


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


GOOD_NPZ = {
    f"base_model.model.{Q}_loraA": np.ones((2, 32), np.float16),
    f"base_model.model.{Q}_loraB": np.ones((32, 2), np.float64),
    f"base_model.model.{Q}_scaling": np.float64(4.0),
}


def test_the_published_npz_is_read(tmp_path: Path) -> None:
    adapter = read_npz(npz(tmp_path / "a.npz", **GOOD_NPZ), "empathy")
    ((name, pair),) = adapter.modules.items()
    assert (name, pair.rank, pair.scale, pair.a.dtype, pair.b.dtype) == (Q, 2, 4.0, torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_other": np.ones(1)}, "key 'x_other' is not of the form"),
        ({"y_loraA": np.ones((1, 2))}, "module 'y' has no loraB, scaling"),
        ({f"base_model.model.{Q}_scaling": np.ones(2)}, "scaling holds 2 numbers; allowed: one"),
        ({f"base_model.model.{Q}_scaling": np.float64("nan")}, "holds NaN or inf"),
        ({f"base_model.model.{Q}_loraA": np.full((2, 32), np.inf)}, "holds NaN or inf"),
        ({f"base_model.model.{Q}_loraA": np.ones((3, 32))}, "allowed: [r, in]"),
        ({"lm_head_loraA": np.ones((1, 4)), "lm_head_loraB": np.ones((4, 1)), "lm_head_scaling": 1.0}, "it adapts the head"),
    ],
)  # fmt: skip
def test_an_npz_that_does_not_make_sense_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        read_npz(npz(tmp_path / "a.npz", **{**GOOD_NPZ, **change}), "empathy")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


def test_an_npz_that_holds_pickles_or_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "objects.npz", x_loraA=np.array([print], dtype=object))
    np.savez(tmp_path / "empty.npz")
    for name in ("text.npz", "objects.npz", "missing.npz"):
        with pytest.raises(AdapterError, match=f"{name}: cannot be read as .npz") as caught:
            read_npz(tmp_path / name, "x")
        assert "\n" not in caught.value.message
    with pytest.raises(AdapterError, match="the file holds no module"):
        read_npz(tmp_path / "empty.npz", "x")
