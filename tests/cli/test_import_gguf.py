"""`emorl import-gguf`: the model of the file, whole and served, or nothing at all and one line that says why."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emorl_core.bundles.bundle import BUNDLE_FILE, read_spec
from emorl_core.ensemble import Ensemble
from emorl_core.models.causal import gguf as importer
from tests.chats import END, START
from tests.cli.conftest import Ran
from tests.cli.gguf_files import TOKENS, tokens_of, write_gguf
from tests.modes import closed_files
from tests.supported_models import tiny_causal

Emorl = Callable[..., Ran]
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="no package gguf (the extra gguf)")
# GGUF's architecture -> ours, and what the file cannot say, so that the model has the library's default.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": False}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma2": (
        "gemma2",
        {
            "layer_types": None,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": ("gemma3_text", {"layer_types": None, "query_pre_attn_scalar": 256, "tie_word_embeddings": True}),
}
IDS = torch.tensor([[5, 9, 71, 8, 33, 60, 14, 2, 90]])


def made(folder: Path, architecture: str) -> Path:
    kind, options = CONFIGS[architecture]
    sizes = {"vocab_size": len(tokens_of(architecture)), "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    return tiny_causal(folder / "original", kind, **{**sizes, **options})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("llama"), "llama")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits
    return found


def test_the_tested_architectures_are_those_that_are_read() -> None:
    assert set(CONFIGS) == set(importer.ARCHITECTURES)


@needs_gguf
@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_model_is_the_one_that_went_in(architecture: str, emorl: Emorl, tmp_path: Path) -> None:
    base = made(tmp_path, architecture)
    file = write_gguf(tmp_path / "model.gguf", base, architecture)
    out = tmp_path / "out"
    ran = emorl("import-gguf", file, "--out", out)
    assert ran.code == 0, ran.err
    assert f"{out}: {architecture}, " in ran.out
    torch.testing.assert_close(logits(out), logits(base), atol=1e-4, rtol=1e-4)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert str(tmp_path) not in json.dumps(config)
    assert closed_files(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "original", "out"]


@needs_gguf
def test_the_tokenizer_and_the_chat_template_come_along(emorl: Emorl, original: Path, tmp_path: Path) -> None:
    """And the folder serves as a base."""
    out = tmp_path / "base"
    assert emorl("import-gguf", write_gguf(tmp_path / "m.gguf", original, "llama"), "--out", out).code == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode("ab", add_special_tokens=False) == [TOKENS.index("ab")]
    assert tokenizer.decode(tokenizer.encode("naïve ab", add_special_tokens=False)) == "naïve ab"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == f"{START}user\nab{END}\n"
    ran = emorl("new", tmp_path / "bundle", "--base", out, "--objective", "warm=Answer warmly.")
    assert ran.code == 0, ran.err
    assert read_spec(tmp_path / "bundle" / BUNDLE_FILE).chat is not None
    ensemble = Ensemble.load(tmp_path / "bundle", device="cpu")
    assert ensemble.engine.model.facts.eos_token_ids == (TOKENS.index(END),)
    assert ensemble.generate("ab", {"warm": 1.0}, max_new_tokens=4).token_ids


@needs_gguf
def test_quantised_weights_are_dequantised_and_said(emorl: Emorl, original: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "q8.gguf", original, "llama", quantised=True, template=None)
    for dtype in ("float32", "bfloat16", "float16"):
        ran = emorl("import-gguf", file, "--out", tmp_path / dtype, "--dtype", dtype, "--json")
        report = json.loads(ran.out)
        assert report["formats"] == {"Q8_0": 23, "F32": 7}
        assert (report["dtype"], report["chat_template"]) == (dtype, False)
        config = json.loads((tmp_path / dtype / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == dtype
    torch.testing.assert_close(logits(tmp_path / "float32"), logits(original), atol=0.3, rtol=0.1)
    ran = emorl("import-gguf", file, "--out", tmp_path / "said")
    assert "parameters in float32, without a chat template" in ran.out
    assert "the file held " in ran.out
    assert "23 tensors Q8_0" in ran.out


def adding(name: str, value: Any) -> Callable[[Any], None]:
    add = {str: "add_string", float: "add_float32", int: "add_uint32"}[type(value)]
    return lambda writer: getattr(writer, add)(name, value)


def tensor(name: str) -> Callable[[Any], None]:
    import numpy as np

    return lambda writer: writer.add_tensor(name, np.ones(4, np.float32))


LOST = [
    (adding("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type is 'yarn', which transformers does not carry"),
    (adding("llama.rope.scaling.factor", 4.0), "llama.rope.scaling.factor is 4.0"),
    (adding("llama.attention.key_length", 99), "llama.attention.key_length is 99"),
    (adding("llama.attention.key_length", 99), "the model would have 16"),
    (adding("llama.attention.sliding_window", 8), "llama.attention.sliding_window is 8"),
    (adding("llama.logit_scale", 0.5), "llama.logit_scale is 0.5"),
    (adding("llama.expert_count", 4), "llama.expert_count is 4"),
    (tensor("rope_freqs.weight"), "no place for tensor 'rope_freqs.weight'; it scales RoPE"),
    (tensor("blk.0.ffn_up.bias"), "no place for tensor 'blk.0.ffn_up.bias'"),
    (adding("general.type", "adapter"), "general.type is 'adapter'; allowed: model"),
    (adding("split.count", 3), "is one of 3 parts"),
]


@needs_gguf
@pytest.mark.parametrize(("change", "says"), LOST, ids=[says[:40] for _, says in LOST])
def test_what_would_be_lost_is_refused_by_name(
    change: Callable[[Any], None], says: str, emorl: Emorl, original: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "m.gguf", original, "llama", change=change)
    ran = emorl("import-gguf", file, "--out", tmp_path / "out")
    line = ran.err.splitlines()[-1]
    assert (ran.code, ran.out) == (2, "")
    assert line.startswith(f"emorl: error: {file}: ")
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@needs_gguf
def test_values_that_agree_are_no_reason(emorl: Emorl, original: Path, tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        writer.add_key_length(16)
        writer.add_value_length(16)
        writer.add_string("llama.rope.scaling.type", "none")
        writer.add_vocab_size(len(TOKENS))

    file = write_gguf(tmp_path / "m.gguf", original, "llama", change=change)
    assert emorl("import-gguf", file, "--out", tmp_path / "out").code == 0


@needs_gguf
def test_a_file_that_is_no_model_is_one_line(emorl: Emorl, original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = write_gguf(tmp_path / "good.gguf", original, "llama")
    file = tmp_path / "m.gguf"
    file.write_bytes(good.read_bytes()[:9000])
    assert f"{file}: cannot be read: " in emorl("import-gguf", file, "--out", out).err
    file.write_bytes(b"GGUF")
    assert f"{file}: cannot be read: " in emorl("import-gguf", file, "--out", out).refused()
    file.write_bytes(b"PK" * 50)
    assert "is not a GGUF file" in emorl("import-gguf", file, "--out", out).refused()
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a Git LFS pointer" in emorl("import-gguf", file, "--out", out).refused()
    os.mkfifo(tmp_path / "fifo.gguf")
    assert "is a FIFO" in emorl("import-gguf", tmp_path / "fifo.gguf", "--out", out).refused()
    assert "no such file" in emorl("import-gguf", tmp_path / "none.gguf", "--out", out).refused()
    write_gguf(file, original, "llama", without="blk.1.ffn_up.weight")
    ran = emorl("import-gguf", file, "--out", out)
    assert ran.code == 2
    assert "has no tensor for 'model.layers.1.mlp.up_proj.weight'" in ran.err
    assert not out.exists()
    (out / "x").mkdir(parents=True)
    assert f"--out {out}: already holds something" in emorl("import-gguf", good, "--out", out).refused()


@needs_gguf
def test_another_architecture_is_refused_by_name(emorl: Emorl, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "falcon")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    said = emorl("import-gguf", tmp_path / "m.gguf", "--out", tmp_path / "out").refused()
    assert "general.architecture is 'falcon'; allowed: llama, qwen2, qwen3, gemma2, gemma3" in said


def test_without_the_package_the_extra_is_named(emorl: Emorl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    said = emorl("import-gguf", tmp_path / "m.gguf", "--out", tmp_path / "out").refused()
    assert "pip install 'emorl[gguf]'" in said
