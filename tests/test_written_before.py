"""What emorl wrote at commit f55cdd3, before its folders were redrawn, still loads, replays and resumes.

The files in `fixtures/f55cdd3` are never made again: their README says how that commit wrote them. Token ids and hashes
are compared exactly. Trained numbers are compared within 1e-5, since another processor adds up in another order.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emorl_cli.main import main
from emorl_core.ensemble import Ensemble
from training.pipeline.run import Places, train
from training.recipe.recipe import load_recipe
from training.rl import checkpoint

WRITTEN = Path(__file__).parent / "fixtures" / "f55cdd3"
PROMPT = "I can't keep up at work, naïve as I am."
COMPUTE = ("--device", "cpu", "--dtype", "float32")
OBJECTIVES = ("reflection", "empathy")
RECEIPTS = sorted((WRITTEN / "receipts").glob("*.json"))
RECIPES = sorted((WRITTEN / "recipes").glob("*.yaml"))
# Defaults at f55cdd3 that are others now.
THEN = ("rl.kl.kind=k3_in_loss",)
# Figures of a comparison that its report did not have at f55cdd3.
SINCE = frozenset({"distinct_2", "pairs", "scored"})

# What was asked of the server at f55cdd3, beside the prompt and 12 tokens.
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"weights": {"reflection": 0.7, "empathy": 0.3}},
    "sampled": {
        "weights": {"reflection": 2, "base": 1}, "temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 7,
        "repetition_penalty": 1.2, "min_new_tokens": 3, "stop": ["zzz"],
    },
    "profile": {"profile": "balanced"},
    "negative": {"weights": {"reflection": 1.4, "empathy": -0.4}, "normalize": False},
    "probabilities": {"weights": {"reflection": 0.5, "empathy": 0.5}, "combine": "probs"},
}  # fmt: skip


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble.load(WRITTEN / "bundle", device="cpu", dtype="float32")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """All of it, where a run may write."""
    return shutil.copytree(WRITTEN, tmp_path / "written")


def read(name: str) -> Any:
    return json.loads((WRITTEN / name).read_text(encoding="utf-8"))


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The JSON document that a command prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ASKED)
def test_a_bundle_gives_the_same_tokens(name: str, ensemble: Ensemble) -> None:
    answer = read(f"receipts/{name}.json")
    completion = ensemble.generate(PROMPT, max_new_tokens=12, **ASKED[name])
    assert list(completion.token_ids) == answer["receipt"]["token_ids"]
    assert completion.text == answer["text"]
    assert completion.weights == answer["weights"]


@pytest.mark.parametrize("path", RECEIPTS, ids=lambda path: path.stem)
def test_a_receipt_replays(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "replay", path, WRITTEN / "bundle", "--json")
    assert found["same"]
    choices = len(read(f"receipts/{path.name}").get("choices", "1"))  # an answer of POST /generate is one
    assert [receipt["verdict"] for receipt in found["receipts"]] == ["same"] * choices


def test_a_file_of_weights_gives_the_same_texts(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--max-new-tokens", 8, *COMPUTE, "--json")
    found = printed(capsys, "sweep", WRITTEN / "bundle", PROMPT, "--weights-file", WRITTEN / "weights.txt", *limits)
    before = read("sweep.json")
    assert found["texts"] == before["texts"]
    assert found["vectors"] == before["vectors"] == 3


def test_the_texts_between_two_objectives_change_where_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--max-new-tokens", 8, *COMPUTE, "--json")
    found = printed(capsys, "sweep", WRITTEN / "bundle", PROMPT, "--line", *OBJECTIVES, *limits)["intervals"]
    before = read("line.json")["intervals"]
    assert [interval["text"] for interval in found] == [interval["text"] for interval in before]
    assert [interval["end"] for interval in found] == pytest.approx([interval["end"] for interval in before], abs=1e-5)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_same_values(path: Path) -> None:
    """No value more either: a run's fingerprint is a hash over all of them. A default that has changed since must be given."""
    assert load_recipe(path, THEN).model_dump(mode="json") == read("recipes/resolved.json")[path.name]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_adapters(copy: Path) -> None:
    """From a checkpoint after step 3 of 5. Dropout and sampling are on."""
    places = Places(copy / "training" / "interrupted")
    saved = checkpoint.latest(places.run)
    assert saved is not None
    assert saved.step == 3
    told: list[Any] = []
    train(load_recipe(copy / "recipes" / "tiny.yaml", THEN), copy / "recipes", places, resume=True, report=told.append)
    assert [(record["event"], record["step"]) for record in told[:1]] == [("resume", 3)]
    assert [record["step"] for record in told if record["event"] == "step"] == [4, 5]
    for name in OBJECTIVES:
        before = load_file(WRITTEN / "training" / f"{name}.safetensors")
        found = load_file(places.bundle / "adapters-last" / name / "adapter_model.safetensors")
        assert found.keys() == before.keys()
        for key, values in before.items():
            torch.testing.assert_close(found[key], values, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_report(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its log ends in half a line."""
    found = printed(
        capsys, "search", copy / "bundle", "--prompts", copy / "search" / "prompts.txt",
        "--scorer", "reflection=lexical_reflection", "--scorer", "words=diversity", "--levels", 3,
        "--max-new-tokens", 8, *COMPUTE, "--threads", 1, "--no-write", "--no-plots", "--json",
        "--resume", "--out", copy / "search" / "interrupted",
    )  # fmt: skip
    before = read("search/report.json")
    assert found["evaluations"]["resumed"] == 5
    for key in ("goal", "space", "objectives", "weights", "prompts", "candidates"):
        assert found[key] == before[key], key


def test_a_comparison_is_reported_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of its cells was scored before, the other one is scored now."""
    found = printed(
        capsys, "evaluate", copy / "recipes" / "tiny.yaml", "--methods", "base,emorl", "--seeds", 1,
        "--set", *THEN, "--report-only", "--no-plots", "--json", "--out", copy / "evaluation" / "run",
    )  # fmt: skip
    assert without(SINCE, found["methods"]) == read("evaluation/methods.json")


def without(keys: frozenset[str], report: Any) -> Any:
    """The report, at any depth without these keys, each of which it must have."""
    met: set[str] = set()

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        met.update(keys & value.keys())
        return {key: kept(own) for key, own in value.items() if key not in keys}

    left = kept(report)
    assert met == keys
    return left
