"""`emorl inspect`: a good bundle explained, and every fault of a broken one in one go."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from emorl_core.adapters.adapter import read_peft
from emorl_core.adapters.writer import write_peft
from emorl_core.bundles.bundle import ObjectiveSpec, PromptSpec
from emorl_core.ensemble import Ensemble
from emorl_core.files.hashes import folder_hash, weights_hash
from tests.chats import tiny_chat_bundle
from tests.supported_models import tiny_causal


def edit_spec(bundle: Path, **changes: object) -> None:
    path = bundle / "bundle.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def faults_of(emorl, bundle: Path) -> list[str]:
    ran = emorl("inspect", bundle, "--json")
    report = json.loads(ran.out)
    assert ran.code == (0 if report["valid"] else 2)
    assert report["valid"] == (not report["faults"])
    assert ran.err == ""
    return report["faults"]


def test_a_good_bundle_is_explained(emorl, bundle: Path) -> None:
    ran = emorl("inspect", bundle)
    assert ran.code == 0
    assert ran.out.splitlines()[0].split() == ["bundle", "tiny"]
    assert ran.out.splitlines()[-1] == "valid"
    for word in ("t5", "d_model 32", "367 entries", "rank 2", "rank 4", "rank 8", "random empathy", "(default)"):
        assert word in ran.out, word


def test_json_holds_the_sizes_that_the_ensemble_measures(emorl, bundle: Path) -> None:
    report = json.loads(emorl("inspect", bundle, "--json").out)
    held = Ensemble.load(bundle, device="cpu", dtype="float32").parameter_bytes()
    assert {key: report["parameter_bytes"][key] for key in held} == held
    assert report["parameter_bytes"]["ratio"] == pytest.approx(1 + held["adapters"] / held["base"], abs=1e-4)
    assert report["profiles"]["balanced"]["default"] is True
    assert report["objectives"]["fluency"]["ranks"] == [8]


def test_bfloat16_halves_the_base(emorl, bundle: Path) -> None:
    full = json.loads(emorl("inspect", bundle, "--json").out)["parameter_bytes"]
    half = json.loads(emorl("inspect", bundle, "--json", "--dtype", "bfloat16").out)["parameter_bytes"]
    assert half["dtype"] == "bfloat16"
    assert half["base"] * 2 == full["base"]


def test_a_bundle_without_a_default_profile_is_valid_and_says_so(emorl, own_bundle: Path) -> None:
    edit_spec(own_bundle, profiles={}, default_profile=None)
    ran = emorl("inspect", own_bundle)
    assert ran.code == 0
    assert "no default_profile" in ran.out


def test_a_date_in_a_profiles_origin_is_no_stumbling_block(emorl, own_bundle: Path) -> None:
    import datetime

    edit_spec(
        own_bundle, profiles={"balanced": {"weights": {"empathy": 1}, "origin": {"on": datetime.date(2025, 8, 1)}}}
    )
    report = json.loads(emorl("inspect", own_bundle, "--json").out)
    assert report["profiles"]["balanced"]["origin"] == {"on": "2025-08-01"}


def test_scorers_are_shown_and_their_files_checked(emorl, own_bundle: Path) -> None:
    judge = own_bundle / "scorers" / "judge"
    judge.mkdir(parents=True)
    (judge / "config.json").write_text("{}")
    scorers = {"empathy": "lexical_empathy", "reflection": {"kind": "cross_encoder", "model": "scorers/judge"}}
    edit_spec(own_bundle, scorers=scorers, scorer_files={"scorers/judge": folder_hash(judge)})
    ran = emorl("inspect", own_bundle)
    assert ran.code == 0
    shown = [line.split() for line in ran.out.splitlines()]
    assert ["scorers", "empathy", "lexical_empathy"] in shown
    assert ["reflection", "cross_encoder:", "model", "scorers/judge"] in shown
    assert ["scorers/judge", "SHA-256", folder_hash(judge)] in shown
    (judge / "config.json").write_text("{ }")
    (fault,) = faults_of(emorl, own_bundle)
    assert "scorer_files.scorers/judge" in fault


def test_every_fault_is_reported_at_once(emorl, own_bundle: Path) -> None:
    """A missing adapter, one that does not fit, one with NaN, and a template that leaves no room."""
    edit_spec(own_bundle, max_source_tokens=4)
    shutil.rmtree(own_bundle / "adapters" / "reflection")
    _spoil(own_bundle / "adapters" / "empathy", lambda tensor: torch.full_like(tensor, float("nan")))
    _spoil(own_bundle / "adapters" / "fluency", lambda tensor: torch.cat([tensor, tensor], dim=1))
    faults = faults_of(emorl, own_bundle)
    for word in ("objectives.reflection.adapter", "'empathy'", "'fluency'", "prompt_template"):
        assert len([fault for fault in faults if word in fault]) == 1, (word, faults)
    assert len(faults) == 4
    ran = emorl("inspect", own_bundle)
    assert ran.out.splitlines()[-1] == "not valid: 4 faults"


def _spoil(adapter: Path, change) -> None:
    """Change one A factor."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "lora_A" in name)
    save_file({**tensors, name: change(tensors[name]).contiguous()}, path, metadata={"format": "pt"})


def test_nan_in_the_base_is_found_by_running_it(emorl, own_bundle: Path) -> None:
    path = own_bundle / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["decoder.final_layer_norm.weight"].fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    (fault,) = faults_of(emorl, own_bundle)
    assert "NaN" in fault


def _without_files(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()


def _with_more_entries(base: Path) -> None:
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 367, "content": "<more>"})
    path.write_text(json.dumps(content))


def _with_another_end(base: Path) -> None:
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 7}))


def _without_an_end(base: Path) -> None:
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": "</s>"}))


def _with_int8(base: Path) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "shared.weight": tensors["shared.weight"].to(torch.int8)}, path)


def _quantised(base: Path) -> None:
    path = base / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "bitsandbytes"}})
    )


def _with_a_pointer(base: Path) -> None:
    (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_files, "the tokenizer knows no words"),
        (_with_more_entries, "the tokenizer has 368 entries"),
        (_with_another_end, "the tokenizer ends a text with token 1 and the base with 7"),
        (_without_an_end, "generation_config.json: eos_token_id is '</s>'"),
        (_with_int8, "tensor 'shared.weight' is stored as I8"),
        (_quantised, "quantization_config says that the weights are quantised ('bitsandbytes')"),
        (_with_a_pointer, "model.safetensors is a Git LFS pointer"),
    ],
)
def test_a_base_that_would_write_noise_is_one_fault(emorl, own_bundle: Path, change, words: str) -> None:
    change(own_bundle / "base")
    (fault,) = faults_of(emorl, own_bundle)
    assert words in fault
    ran = emorl("generate", own_bundle, "work hurts", "--device", "cpu")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    ran = emorl("serve", own_bundle, "--check")
    assert ran.code == 2
    assert words in ran.err


def test_another_architecture_is_refused_by_name(emorl, own_bundle: Path) -> None:
    config = own_bundle / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "bart"}))
    assert any("'bart'" in fault and "FLAN-T5" in fault for fault in faults_of(emorl, own_bundle))


@pytest.mark.parametrize("file", ["base/config.json", "base/model.safetensors", "base/tokenizer.json"])
def test_a_broken_file_is_a_fault_and_no_traceback(emorl, own_bundle: Path, file: str) -> None:
    (own_bundle / file).write_bytes(b"{not")
    assert faults_of(emorl, own_bundle)


def test_faults_of_the_spec_are_reported(emorl, own_bundle: Path, tmp_path: Path) -> None:
    edit_spec(own_bundle, colour="red", default_profile="nope")
    (fault,) = faults_of(emorl, own_bundle)
    assert "'colour'" in fault
    (fault,) = faults_of(emorl, tmp_path / "nowhere")
    assert "no such folder" in fault


@pytest.mark.parametrize(
    "place", ["base/tokenizer.json", "base/config.json", "base/x", "adapters/empathy/adapter_config.json"]
)
def test_a_fifo_is_a_fault_and_not_a_wait(emorl, own_bundle: Path, place: str) -> None:
    (own_bundle / place).unlink(missing_ok=True)
    os.mkfifo(own_bundle / place)
    (fault,) = faults_of(emorl, own_bundle)
    assert f"{Path(place).name}" in fault
    assert "is a FIFO; allowed: a regular file" in fault


def test_a_base_of_another_name_or_with_other_weights_is_a_warning(emorl, own_bundle: Path, monkeypatch) -> None:
    """A mirror, a renamed copy: it serves, and a person should look."""
    base = own_bundle / "base"
    monkeypatch.setattr("emorl_core.bundles.bundle.hub_folder", lambda name, revision=None: base)
    edit_spec(own_bundle, base={"hub": "clinic/mirror-of-t5"})
    config = own_bundle / "adapters" / "empathy" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "google-t5/t5-base"}))
    read = read_peft(own_bundle / "adapters" / "fluency", "fluency")
    write_peft(read, own_bundle / "adapters" / "fluency", base_sha256=weights_hash(base))
    ran = emorl("inspect", own_bundle, "--json")
    report = json.loads(ran.out)
    line = "adapter 'empathy': it was trained on base 'google-t5/t5-base'; the base here is 'clinic/mirror-of-t5'"
    assert (ran.code, report["valid"], report["warnings"]) == (0, True, [line])
    write_peft(read, own_bundle / "adapters" / "fluency", base_sha256="0" * 64)
    ran = emorl("inspect", own_bundle)
    assert ran.code == 0
    assert f"warning     {line}" in ran.out
    assert "warning     adapter 'fluency': it was trained on a base with other weights" in ran.out
    assert ran.out.splitlines()[-1] == "valid"


def test_a_name_is_no_reason_to_refuse_serving_but_is_logged(own_bundle: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("emorl_core.bundles.bundle.hub_folder", lambda name, revision=None: own_bundle / "base")
    edit_spec(own_bundle, base={"hub": "clinic/mirror-of-t5"})
    config = own_bundle / "adapters" / "empathy" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "google-t5/t5-base"}))
    Ensemble.load(own_bundle)
    (record,) = caplog.records
    assert "it was trained on base 'google-t5/t5-base'; the base here is 'clinic/mirror-of-t5'" in record.getMessage()


def test_serve_check_says_the_same(emorl, bundle: Path, own_bundle: Path) -> None:
    assert emorl("serve", bundle, "--check").out.endswith("valid\n")
    shutil.rmtree(own_bundle / "adapters" / "reflection")
    ran = emorl("serve", own_bundle, "--check")
    assert ran.code == 2
    assert "objectives.reflection.adapter" in ran.err


def test_the_sizes_of_a_base_are_those_of_its_family(emorl, own_bundle: Path) -> None:
    """Also where its adapters do not fit and nothing else is valid."""
    shutil.rmtree(own_bundle / "base")
    tiny_causal(own_bundle / "base", "llama")
    report = json.loads(emorl("inspect", own_bundle, "--json").out)
    assert {"hidden_size", "num_hidden_layers", "vocab_size"} <= set(report["base"])
    assert f"hidden_size {report['base']['hidden_size']}" in emorl("inspect", own_bundle).out


def test_objectives_that_are_sentences_are_shown_with_them(emorl, tmp_path: Path) -> None:
    objectives = {
        "one": ObjectiveSpec(adapter="adapters/one", prompt=PromptSpec(system="Be brief.")),
        "warm": ObjectiveSpec(prompt=PromptSpec(system="Answer warmly."), description="kind"),
    }
    bundle = tiny_chat_bundle(tmp_path, objectives=objectives, profiles={}, default_profile=None)
    ran = emorl("inspect", bundle)
    assert ran.code == 0, ran.err
    assert "system 'Answer warmly.': kind" in ran.out
    assert "parameters; system 'Be brief.'" in ran.out
    assert "chat template (" in ran.out
    report = json.loads(emorl("inspect", bundle, "--json").out)
    assert report["valid"]
    assert report["objectives"]["warm"] == {
        "adapter": None,
        "prompt": {"system": "Answer warmly."},
        "description": "kind",
    }
    edit_spec(bundle, max_source_tokens=40)
    ran = emorl("inspect", bundle)
    assert ran.code != 0
    assert "the prompt of objective 'warm' takes" in ran.out + ran.err
