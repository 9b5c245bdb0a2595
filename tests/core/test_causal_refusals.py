"""What decoder-only lanes refuse, by name, each of which would otherwise write wrong text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.errors import AdapterError, PromptTooLong, UnsupportedModel
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal import admission
from emorl_core.models.causal.linears import LaneLayer, Rows
from emorl_core.models.causal.load import load
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.config import read_config
from tests.core.causal_reference import SeparateModels, lockstep
from tests.core.driving import read_whole
from tests.core.test_causal_golden import CPU, loaded
from tests.supported_models import tiny_causal, tiny_causal_adapter


def opened(folder: Path) -> CausalModel:
    return load(folder, read_config(folder), device=CPU, dtype=torch.float32, training=False)


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("falcon", {}, "does not let attention be replaced"),
        ("bloom", {}, "does not let attention be replaced"),
        ("gptj", {}, "does not let attention be replaced"),
        ("qwen3_next", {}, r"recurrent, convolution or linear-attention layers \(linear_attention\)"),
        ("qwen3_5_text", {}, r"recurrent, convolution or linear-attention layers \(linear_attention\)"),
        ("minimax", {}, r"recurrent, convolution or linear-attention layers \(linear_attention\)"),
        (
            "lfm2",
            {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
            r"linear-attention layers \(conv\)",
        ),
        ("mamba", {}, "recurrent"),
        ("bamba", {}, "recurrent"),
        ("falcon_h1", {}, "recurrent"),
        ("granitemoehybrid", {}, "recurrent"),
        ("rwkv", {}, "keeps a recurrent state"),
        ("llama4_text", {}, "layer_types holds chunked_attention; allowed: full_attention, sliding_attention"),
        ("deepseek_v3", {}, "multi-head latent attention"),
        ("minicpm3", {}, "multi-head latent attention"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "layers share keys and values"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention looks both ways"),
        ("gemma3", {}, "more than a language model"),
        ("gpt2", {"add_cross_attention": True}, "cross-attention"),
        ("bart", {}, "it has an encoder"),
        ("vit", {}, "transformers has no causal language model for it"),
    ],
)
def test_a_config_is_refused_before_weights_are_read(
    kind: str, config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(kind, **config).save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModel, match=f"base model_type '{kind}': .*{reason}.*; what works: decoder-only models"
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "auto_map: the model brings code of its own"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised .*bitsandbytes"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised .*awq"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised .*gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised .*fp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised .*mxfp4"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "quantised .*awq"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification, which is no causal"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel, which is no causal"),
        ({"model_type": "unheard_of"}, "model_type is 'unheard_of', which transformers does not know"),
        ({"num_hidden_layers": "many"}, "config.json: transformers cannot read it as 'llama': .*num_hidden_layers"),
    ],
)
def test_a_checkpoint_is_refused_by_what_it_says(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    edited(tiny_causal(tmp_path, "llama"), **changes)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        opened(tmp_path)
    assert "\n" not in caught.value.message


def test_weights_that_are_missing(tmp_path: Path) -> None:
    """A head that is not in the file would be a random one."""
    model = LlamaForCausalLM.from_pretrained(tiny_causal(tmp_path / "whole", "llama"))
    model.model.save_pretrained(tmp_path / "body")
    edited(tmp_path / "body", architectures=["LlamaForCausalLM"])
    with pytest.raises(UnsupportedModel, match=r"has no tensor 'lm_head.weight'; LlamaForCausalLM would"):
        opened(tmp_path / "body")


def test_pickles_and_empty_folders(tmp_path: Path) -> None:
    tiny_causal(tmp_path, "llama")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UnsupportedModel, match=r"no model.safetensors .*pytorch_model.bin is a pickle, which is not loaded"
    ):
        opened(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UnsupportedModel, match=r"no model.safetensors and no model.safetensors.index.json"):
        opened(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("bloom", {}),
        ("bert", {}),
        ("doge", {}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_the_self_test_alone_refuses_them_too(
    kind: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags looked fine for some of these; what they do in lanes does not."""
    monkeypatch.setattr(admission, "refuse_config", lambda config: None)
    monkeypatch.setattr(admission, "refuse_files", lambda config: None)
    tiny_causal(tmp_path, kind, **config)
    with pytest.raises(UnsupportedModel, match=f"base model_type '{kind}': run in lanes, it does not do what it does"):
        opened(tmp_path)


def test_the_self_test_finds_a_constant_that_nobody_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = honest(self, *args, **kwargs)
        out.logits = out.logits * 1.01
        return out

    tiny_causal(tmp_path, "llama")
    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(UnsupportedModel, match=r"logits are off by 0\.0099 of their spread, allowed: 0\.001"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "cohere2"])
def test_the_self_test_reaches_across_windows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 64 tokens that attention forgets: no row of the test is that long, and it is found all the same."""
    from emorl_core.models.causal import attention

    tiny_causal(tmp_path, kind, sliding_window=64)
    model = opened(tmp_path)
    assert {getattr(module, "sliding_window", None) for module in model.decoder.modules()} <= {64, None}
    assert model.decoder.config.sliding_window == 64
    honest = attention.Masks.within
    monkeypatch.setattr(attention.Masks, "within", lambda self, distance, window: honest(self, distance, None))
    with pytest.raises(UnsupportedModel, match="logits are off"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}, 32),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0, 5.0, 7.0, 9.0],
                "original_max_position_embeddings": 20,
                "factor": 1.6,
            },
            20,
        ),
    ],
)
def test_rope_that_follows_the_longest_row_stops_at_its_original_length(
    rope: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    """Beyond it, a neighbour's length would change a row's tokens."""
    tiny_causal(tmp_path, "llama", max_position_embeddings=32, rope_parameters=rope)
    model = opened(tmp_path)
    assert model.facts.max_positions == limit
    mix, short, long = torch.ones(1, 1), tuple(range(5, 12)), tuple(range(3, limit - 3))
    alone, _ = lockstep(model, [short], mix, 4)
    beside, _ = lockstep(model, [short, long], mix, 4)
    expected, _ = SeparateModels(tmp_path, []).greedy(short, mix, 4)
    assert alone[0].tolist() == beside[0].tolist() == expected.tolist()
    with pytest.raises(PromptTooLong, match=f"a sequence of {limit + 1} tokens; the base has {limit} positions"):
        lockstep(model, [short, tuple(range(3, limit))], mix, 5)
    with pytest.raises(PromptTooLong):
        read_whole(model, [Lane((), tuple(range(3, limit + 5)))])


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("lm_head", r"the head; mixing hidden states needs one head"),
        ("model.layers.0.mlp.experts.0.w1", "one of the experts"),
        ("model.layers.0.mlp.experts.gate_up_proj", "one of the experts"),
        ("model.layers.9.self_attn.q_proj", "the base has no linear layer"),
        ("model.embed_tokens", "the base has no linear layer"),
    ],
)
def test_adapters_on_what_lanes_do_not_share(module: str, reason: str, tmp_path: Path) -> None:
    model = opened(tiny_causal(tmp_path, "mixtral"))
    adapter = Adapter("warm", {module: LoraPair(torch.ones(2, 32), torch.ones(32, 2), 1.0)})
    with pytest.raises(AdapterError, match=f"adapter 'warm': .*{reason}") as caught:
        model.attach([adapter])
    assert caught.value.param == "objectives.warm.adapter"


@pytest.mark.parametrize(
    ("kind", "targets", "options", "reason"),
    [
        ("llama", ["q_proj", "lm_head"], {}, "is a trained head"),
        ("gpt_neox", ["dense", "lm_head"], {}, "is a trained head"),
        ("llama", ["q_proj", "embed_tokens"], {}, "not the LoRA weight of a linear layer"),
        ("mixtral", ["q_proj"], {"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters is set"),
        ("mixtral", "all-linear", {}, "target_parameters is set"),
        ("llama", ["q_proj"], {"bias": "all"}, "a trained bias"),
        ("llama", ["q_proj"], {"use_dora": True}, "use_dora is set"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_adapters_that_peft_writes_and_lanes_refuse(
    kind: str, targets: Any, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    base = tiny_causal(tmp_path / "base", kind)
    folder = tiny_causal_adapter(base, tmp_path / "warm", 2, 1, targets, **options)
    with pytest.raises(AdapterError, match=f"adapter 'warm': .*{reason}"):
        loaded(base, [folder])


def test_a_layer_that_sees_a_part_of_the_tokens_takes_no_adapter() -> None:
    """Routed experts that are linear layers of their own: which lane a row belongs to is lost."""
    rows = Rows()
    layer = LaneLayer("model.layers.0.expert", torch.ones(3, 2), None, rows)
    rows.set(LaneIndex(torch.ones(8, 1)), 8)
    layer(torch.ones(8, 2))
    assert not rows.routed
    layer(torch.ones(5, 2))
    assert rows.routed == {"model.layers.0.expert"}
    layer.linear.attach(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 3))
    with pytest.raises(RuntimeError, match="has adapters and was given a part of the tokens only"):
        layer(torch.ones(5, 2))
