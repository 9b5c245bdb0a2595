"""`emorl bake`: one adapter that gives the tokens of `combine: weights`, in PEFT and here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from emorl_core.adapters.adapter import Adapter, read_peft
from emorl_core.adapters.writer import write_peft
from emorl_core.bundles.bundle import BUNDLE_FILE, ObjectiveSpec, PromptSpec, read_spec, write_spec
from emorl_core.ensemble import Ensemble
from emorl_core.files.hashes import weights_hash
from tests.builders import outdated_peft, tiny_adapter
from tests.chats import START, tiny_chat_bundle, tokenizer_of
from tests.cli.conftest import Ran
from tests.modes import closed_files
from tests.supported_models import tiny_causal_adapter

Emorl = Callable[..., Ran]
PROMPTS = ("work hurts", "my mother never listens and I can't sleep", "who am I?")
TOKENS = 10


@pytest.fixture(scope="module")
def t5(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of other ranks, scales and modules."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("t5") / "b"))
    for name, rank, options in (
        ("reflection", 3, {"targets": ("q", "wo"), "use_rslora": True}),
        ("empathy", 5, {"rank_pattern": {"q": 2}, "alpha_pattern": {"wo": 3.0}}),
    ):
        shutil.rmtree(folder / "adapters" / name)
        tiny_adapter(folder / "base", folder / "adapters" / name, rank, 4.0, rank, **options)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain adapters `one`, `two` and activated ones `first`, `second`, `other`, over one chat model."""
    folder = tmp_path_factory.mktemp("llama")
    base = folder / "base"
    names = ("one", "two", "first", "second", "other")
    tiny_chat_bundle(
        folder,
        objectives={name: ObjectiveSpec(adapter=f"adapters/{name}") for name in names}
        | {"warm": ObjectiveSpec(prompt=PromptSpec(system="Be warm."))}
        | {"told": ObjectiveSpec(adapter="adapters/one", prompt=PromptSpec(system="Be told."))},
        profiles={"mix": {"weights": {"one": 1.0, "two": 3.0}}},
        default_profile="mix",
    )
    start = tokenizer_of(None).convert_tokens_to_ids(START)
    tiny_causal_adapter(base, folder / "adapters" / "two", 3, 2, ("q_proj", "down_proj"), use_rslora=True)
    turn = {"alora_invocation_tokens": [start]}
    tiny_causal_adapter(base, folder / "adapters" / "first", 2, 3, "all-linear", **turn)
    tiny_causal_adapter(base, folder / "adapters" / "second", 4, 4, ("v_proj", "o_proj"), **turn)
    tiny_causal_adapter(base, folder / "adapters" / "other", 2, 5, "all-linear", alora_invocation_tokens=[start, 5])
    return folder


def by_peft(base: Path, adapter: Path, prompts: Sequence[Sequence[int]], ends: Sequence[int]) -> list[list[int]]:
    """Greedy replies of the library's own loop, with the end of sequence."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    kind: Any = AutoModelForCausalLM if config["task_type"] == "CAUSAL_LM" else AutoModelForSeq2SeqLM
    with outdated_peft():
        model = PeftModel.from_pretrained(kind.from_pretrained(base), adapter).eval()
    causal = kind is AutoModelForCausalLM
    settings = GenerationConfig(
        max_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=list(ends),
        decoder_start_token_id=0,
        use_cache=causal,  # the library's cache of T5 takes the encoder's number of layers for the decoder's
    )
    replies = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        replies.append(out[0, ids.shape[1] if causal else 1 :].tolist())
    return replies


def served_by(bundle: Path, adapter: Path, folder: Path) -> Ensemble:
    """A bundle around the baked adapter alone."""
    spec = read_spec(bundle / BUNDLE_FILE)
    shutil.copytree(bundle / "base", folder / "base")
    shutil.copytree(adapter, folder / "adapters" / "mix")
    objectives = {"mix": ObjectiveSpec(adapter="adapters/mix")}
    write_spec(folder, spec.model_copy(update={"objectives": objectives, "profiles": {}, "default_profile": None}))
    return Ensemble.load(folder, device="cpu", dtype="float32")


MIXES = [
    ("t5", "reflection=0.7,empathy=0.3", []),
    ("t5", "base=0.25,reflection=0.25,empathy=0.25,fluency=0.25", []),
    ("t5", "reflection=1.5,fluency=-0.7", ["--no-normalize"]),
    ("t5", "fluency=1", []),
    ("llama", "one=0.6,two=0.4", []),
    ("llama", "one=-0.5,two=1.5", ["--no-normalize"]),
    ("llama", "first=0.6,second=0.4", []),
    ("llama", "base=1,second=3", []),
]


@pytest.mark.parametrize(("shape", "weights", "options"), MIXES)
def test_against_peft_the_tokens_of_combine_weights(
    shape: str, weights: str, options: list[str], emorl: Emorl, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle: Path = request.getfixturevalue(shape)
    out = tmp_path / "mix"
    ran = emorl("bake", bundle, "--weights", weights, "--out", out, "--json", *options)
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    mix = {name: float(value) for name, value in (part.split("=") for part in weights.split(","))}
    engine = Ensemble.load(bundle, device="cpu", dtype="float32")
    prompts = [engine.encode(prompt) for prompt in PROMPTS]
    wanted = [
        list(engine.generate(prompt, mix, combine="weights", normalize=not options, max_new_tokens=TOKENS).token_ids)
        for prompt in PROMPTS
    ]
    bare = [list(engine.generate(prompt, {"base": 1.0}, max_new_tokens=TOKENS).token_ids) for prompt in PROMPTS]
    assert wanted != bare
    ends = engine.engine.model.facts.eos_token_ids
    assert by_peft(bundle / "base", out, prompts, ends) == wanted
    again = served_by(bundle, out, tmp_path / "again")
    assert [list(again.generate(p, {"mix": 1.0}, max_new_tokens=TOKENS).token_ids) for p in PROMPTS] == wanted

    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["task_type"] == ("SEQ_2_SEQ_LM" if shape == "t5" else "CAUSAL_LM")
    assert config["r"] == config["lora_alpha"] == report["rank"]
    assert config.get("alora_invocation_tokens") == report["invocation_tokens"]
    assert (report["invocation_tokens"] is not None) == ("first" in mix or "second" in mix)


def test_every_module_is_the_exact_sum_in_the_one_form_that_all_readers_take(
    t5: Path, emorl: Emorl, tmp_path: Path
) -> None:
    """One rank and one alpha for all modules: vLLM and llama.cpp know no patterns."""
    weights = {"reflection": 0.5, "empathy": 0.25, "fluency": 0.25}
    out = tmp_path / "mix"
    assert emorl("bake", t5, "--weights", ",".join(f"{k}={v}" for k, v in weights.items()), "--out", out).code == 0
    parts = {name: read_peft(t5 / "adapters" / name, name) for name in weights}
    found = read_peft(out, "mix")
    assert set(found.modules) == {module for part in parts.values() for module in part.modules}
    for module, pair in found.modules.items():
        wanted = sum(weights[name] * p.modules[module].delta() for name, p in parts.items() if module in p.modules)
        assert isinstance(wanted, torch.Tensor)
        torch.testing.assert_close(pair.delta(), wanted, atol=1e-6, rtol=1e-5)
        assert (pair.rank, pair.scale) == (3 + 5 + 8, 1.0)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (16, 16, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert found.base_sha256 == weights_hash(t5 / "base")
    assert str(t5) not in (out / "adapter_config.json").read_text(encoding="utf-8")
    assert closed_files(out) == []


def test_a_profile_and_the_default_one(llama: Path, emorl: Emorl, tmp_path: Path) -> None:
    ran = emorl("bake", llama, "--profile", "mix", "--out", tmp_path / "a")
    assert ran.code == 0
    assert ": one 0.25, two 0.75; 21 modules of rank 5, " in ran.out
    assert emorl("bake", llama, "--out", tmp_path / "b").code == 0
    one, other = (tmp_path / name / "adapter_model.safetensors" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    assert "activated" in emorl("bake", llama, "--weights", "first=1", "--out", tmp_path / "c").out


BAD = [
    (["--weights", "one=1,first=1"], "'one' acts on the whole prompt and 'first' acts from the tokens 257 on"),
    (["--weights", "first=1,other=1"], "acts from the tokens 257 on and 'other' acts from the tokens 257, 5 on"),
    (["--weights", "base=1"], "no adapter has weight, so the mix is the base itself"),
    (["--weights", "one=1,warm=1"], "weights.warm is 0.5, and 'warm' has a prompt of its own, which no adapter holds"),
    (["--weights", "told=1"], "weights.told is 1, and 'told' has a prompt of its own"),
    (["--weights", "one=0"], "all are zero"),
    (["--weights", "one=-1,two=2"], "negative weights are allowed only with normalize: false"),
    (["--weights", "one=nan"], "allowed: finite numbers"),
    (["--weights", "calm=1"], "unknown objective 'calm'"),
    (["--profile", "none"], "profile 'none' is unknown"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_what_one_adapter_cannot_be_is_refused(
    options: list[str], says: str, llama: Path, emorl: Emorl, tmp_path: Path
) -> None:
    assert says in emorl("bake", llama, *options, "--out", tmp_path / "mix").refused()
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_float32_are_refused(t5: Path, emorl: Emorl, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(t5, tmp_path / "bundle"))
    read = read_peft(bundle / "adapters" / "fluency", "fluency")
    modules = {module: type(pair)(pair.a, pair.b * 1e34, pair.scale) for module, pair in read.modules.items()}
    write_peft(Adapter("fluency", modules), bundle / "adapters" / "fluency")
    said = emorl("bake", bundle, "--weights", "fluency=1000000", "--no-normalize", "--out", tmp_path / "mix").refused()
    assert "holds NaN or inf" in said


def test_nothing_is_overwritten_and_a_base_that_it_does_not_fit_is_found(
    t5: Path, llama: Path, emorl: Emorl, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "keep").write_text("me")
    assert (
        f"--out {full}: already holds something" in emorl("bake", t5, "--weights", "fluency=1", "--out", full).refused()
    )
    bundle = Path(shutil.copytree(t5, tmp_path / "bundle"))
    shutil.rmtree(bundle / "base")
    shutil.copytree(llama / "base", bundle / "base")
    assert "adapter 'mix'" in emorl("bake", bundle, "--weights", "fluency=1", "--out", tmp_path / "mix").refused()
    assert not (tmp_path / "mix").exists()
