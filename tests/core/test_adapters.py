"""Reading adapters: what lanes can represent exactly is read exactly, the rest is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from emorl_core.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter, LoraPair, of_another_base, read_peft
from emorl_core.adapters.writer import write_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR
from emorl_core.errors import AdapterError
from emorl_core.models.registry import load_model
from tests.builders import outdated_peft, tiny_adapter, tiny_t5
from tests.core.adapter_folders import KEY, Q, edit_config, edit_weights, refusal


@pytest.fixture
def base(plain_bundle: Path) -> Path:
    return plain_bundle / BASE_DIR


@pytest.fixture
def folder(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter, to be spoilt."""
    return Path(shutil.copytree(plain_bundle / ADAPTERS_DIR / "empathy", tmp_path / "spoilt"))


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

    from emorl_core.adapters.adapter import _REFUSED_OPTIONS

    understood = {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
        "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "alpha_pattern", "lora_dropout", "lora_ga_config", "megatron_core",
        "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "task_type", "use_rslora", "bias", "fan_in_fan_out",
        "alora_invocation_tokens",
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


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_of_a_base_that_has_none_are_no_hindrance(bias: str, base: Path, tmp_path: Path) -> None:
    """PEFT saves what it trained, and of T5 there was nothing."""
    plain = read_peft(tiny_adapter(base, tmp_path / "plain", 2, 4, 0, ["q", "v"]), "empathy")
    found = read_peft(tiny_adapter(base, tmp_path / "bias", 2, 4, 0, ["q", "v"], bias=bias), "empathy")
    assert found.modules.keys() == plain.modules.keys()
    assert all(torch.equal(found.modules[name].delta(), plain.modules[name].delta()) for name in plain.modules)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_in_the_file_are_refused_by_name(bias: str, folder: Path) -> None:
    edit_config(folder, bias=bias)
    key = f"base_model.model.{Q}.base_layer.bias"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(32)}))
    assert (
        f"tensor {key!r} is not the LoRA weight of a linear layer but a trained bias, and the lanes share the base's"
        in refusal(folder)
    )


def test_a_kind_of_bias_that_peft_does_not_know_is_refused(folder: Path) -> None:
    assert "bias is 'some'; allowed: none, all, lora_only" in refusal(edit_config(folder, bias="some"))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but:UserWarning")
def test_fan_in_fan_out_is_taken_as_peft_takes_it(base: Path, tmp_path: Path) -> None:
    """PEFT sets it back for linear layers, warns, and saves the matrices as ever."""
    plain = read_peft(tiny_adapter(base, tmp_path / "plain", 2, 4, 0), "empathy")
    other = tiny_adapter(base, tmp_path / "other", 2, 4, 0, fan_in_fan_out=True)
    found = read_peft(edit_config(other, fan_in_fan_out=True), "empathy")
    assert all(torch.equal(found.modules[name].delta(), plain.modules[name].delta()) for name in plain.modules)


@pytest.mark.parametrize(
    ("ours", "theirs", "doubted"),
    [
        ("google-t5/t5-base", "google-t5/t5-base", False),
        ("google-t5/t5-base", "t5-base", False),  # the hub's old and new name
        ("google-t5/t5-base", "google-t5/t5-small", True),
        ("google/flan-t5-base", "t5-base", True),
        ("google-t5/t5-base", "clinic/mirror-of-t5", True),
        ("google-t5/t5-base", "/home/somebody/models/base", False),  # a folder says nothing
        ("google-t5/t5-base", "./base", False),
        ("google-t5/t5-base", None, False),
        (None, "t5-small", False),
    ],
)
def test_the_name_of_another_base_is_doubted_and_not_refused(
    ours: str | None, theirs: str | None, doubted: bool, folder: Path
) -> None:
    adapter = read_peft(edit_config(folder, base_model_name_or_path=theirs), "empathy")
    assert adapter.base_name == theirs
    line = f"adapter 'empathy': it was trained on base {theirs!r}; the base here is {ours!r}"
    assert list(of_another_base([adapter], ours)) == ([line] if doubted else [])


def test_the_hash_of_another_base_is_doubted_whatever_the_names_say(plain_bundle: Path, tmp_path: Path) -> None:
    read = read_peft(plain_bundle / ADAPTERS_DIR / "empathy", "empathy")
    write_peft(read, tmp_path / "a", base_name="t5-base", base_sha256="1" * 64)
    adapter = read_peft(tmp_path / "a", "empathy")
    assert adapter.base_sha256 == "1" * 64
    assert list(of_another_base([adapter], "t5-base", "1" * 64)) == []
    assert "a base with other weights" in next(of_another_base([adapter], "t5-base", "2" * 64))
    assert list(of_another_base([adapter], "t5-base")) == [], "not known"
    files = set()
    for number in range(8):
        write_peft(adapter, tmp_path / str(number), base_name="t5-base")
        files.add((tmp_path / str(number) / WEIGHTS_FILE).read_bytes())
    assert len(files) == 1, "the same adapter gives the same bytes"
    write_peft(adapter, tmp_path / "again")
    assert read_peft(tmp_path / "again", "empathy").base_sha256 == "1" * 64


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


@pytest.mark.parametrize("use", ["false", 1.5, [True]])
def test_a_switch_that_is_no_switch_is_refused(use: object, folder: Path) -> None:
    assert "use_rslora is" in refusal(edit_config(folder, use_rslora=use))


@pytest.mark.parametrize("option", ["peft_type", "bias", "use_rslora", "lora_alpha", "base_model_name_or_path"])
def test_a_value_without_end_is_not_repeated(option: str, folder: Path) -> None:
    assert len(refusal(edit_config(folder, **{option: ["x" * 100_000]}))) < 300


def test_a_base_name_that_is_no_text_is_refused(folder: Path) -> None:
    assert "base_model_name_or_path is ['x']; allowed: text" in refusal(
        edit_config(folder, base_model_name_or_path=["x"])
    )


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
