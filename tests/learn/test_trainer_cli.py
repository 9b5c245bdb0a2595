"""`emorl train` and `emorl warm-start`: what they write, what they refuse, and how they say it."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emorl_cli.main import main
from emorl_core.adapters.adapter import read_peft
from emorl_core.bundles.bundle import Bundle
from emorl_core.bundles.stored_scorers import learned
from emorl_core.ensemble import Ensemble
from emorl_core.files.hashes import weights_hash
from tests.apart import started
from tests.learn.causal_tasks import write_causal_recipe
from tests.learn.test_resume import write_recipe
from tests.modes import closed_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe, and `out` beside it, trained for two steps."""
    folder = tmp_path_factory.mktemp("train")
    recipe = write_recipe(folder)
    assert main(["train", str(recipe), "--out", str(folder / "out"), "--set", "rl.stop.max_steps=2"]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Exit code 2 and exactly one line, which is returned."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emorl: error:")]
    assert len(lines) == 1
    return lines[0]


def test_the_bundle_serves_and_tells_how_it_came_about(trained: Path) -> None:
    bundle = Bundle.open(trained / "out")
    assert set(bundle.spec.objectives) == {"reflection", "empathy", "fluency"}
    ensemble = Ensemble.load(trained / "out", device="cpu")
    assert ensemble.generate("i feel sad", weights={"empathy": 1.0}, max_new_tokens=4).completion_tokens <= 4
    report = json.loads((trained / "out" / "training.json").read_text())
    assert report["recipe"]["rl"]["stop"]["max_steps"] == 2
    assert report["seeds"] == {"run": 0, "split": 0}
    assert len(report["data"]["sources"][0]["sha256"]) == 64
    assert report["data"]["parts"]["train"]["prompts"] + report["data"]["parts"]["validation"]["prompts"] < 24
    for objective in report["objectives"].values():
        assert objective["consumption"]["prompts"] == 8
        assert objective["consumption"]["samples"] == 24
        assert {"base", "best", "best_step", "last"} == set(objective["validation"])
    assert str(trained) not in json.dumps(report)  # no path of this machine
    assert closed_files(trained / "out") == []


def test_the_bundle_has_the_scorers_of_its_recipe(trained: Path) -> None:
    recipe = json.loads((trained / "out" / "training.json").read_text())["recipe"]
    wanted = {name: objective["scorer"] for name, objective in recipe["objectives"].items()}
    kept = {name: spec for name, spec in wanted.items() if not learned(spec)}
    assert kept
    assert Bundle.open(trained / "out").spec.scorers == kept


def test_adapters_know_the_weights_of_their_base(trained: Path) -> None:
    for name in ("reflection", "empathy", "fluency"):
        adapter = read_peft(trained / "out" / "adapters" / name, name)
        assert adapter.base_sha256 == weights_hash(trained / "out" / "base")


def test_best_and_last_adapters_are_peft_folders(trained: Path) -> None:
    for place in ("adapters", "adapters-last"):
        for name in ("reflection", "empathy", "fluency"):
            config = json.loads((trained / "out" / place / name / "adapter_config.json").read_text())
            assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.3)


def test_json_is_one_document_on_stdout(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(trained / "recipe.yaml")
    out = str(trained / "one")
    code = main(["train", recipe, "--out", out, "--objective", "empathy", "--json", "--set", "rl.stop.max_steps=1"])
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["objectives"]) == ["empathy"]
    assert list(Bundle.open(out).spec.objectives) == ["empathy"]


def test_a_dry_run_tells_sizes_and_writes_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(trained.rglob("*"))
    assert main(["train", str(trained / "recipe.yaml"), "--out", str(trained / "dry"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"train: \d+ prompts", text)
    for said in ("at most 9", "trained", "memory"):
        assert said in text
    assert main(["train", str(trained / "recipe.yaml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(trained.rglob("*")) == before
    report = json.loads((trained / "out" / "training.json").read_text())
    assert plan["data"]["parts"] == report["data"]["parts"]
    weights = Ensemble.load(trained / "out", device="cpu", dtype="float32").parameter_bytes()
    assert sum(plan["parameters"]["adapters"].values()) * 4 == weights["adapters"]
    assert plan["parameters"]["base"] * 4 == pytest.approx(
        weights["base"], rel=0.02
    )  # norms and biases are not counted
    assert plan["memory_bytes"]["total"] > weights["base"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objective", "humour"], "'humour' is not in the recipe"),
        (["--set", "rl.learning_rte=1"], "did you mean 'learning_rate'?"),
        (["--set", "rl.learning_rate=-1"], "rl.learning_rate"),
        (["--set", "base.path=nowhere"], "base.path is 'nowhere'"),
        (["--set", "data.sources.0.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["--set", "data.max_prompts=3"], "validation"),
        (["--set", "objectives.empathy.scorer={kind: callable, path: no.such:thing}"], "no.such"),
        (["--set", "objectives.empathy.scorer={kind: callable, path: builtins:len}"], "len"),
        (["--set", "lora.targets=[query]"], "the base has no layer 'query'"),
        (["--set", "compute.device=cuda"], "no CUDA device"),
        (["--set", "compute.trackers=[trackio]"], "'trackio' is not installed"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    out = trained / "refused"
    assert said in refused(capsys, "train", str(trained / "recipe.yaml"), "--out", str(out), *arguments)
    assert not out.exists()


def test_what_exists_is_not_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "out" / "training.json").read_bytes()
    assert "--overwrite" in refused(capsys, "train", str(trained / "recipe.yaml"), "--out", str(trained / "out"))
    assert (trained / "out" / "training.json").read_bytes() == before


def test_warm_start_needs_a_recipe_with_one(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "warm-start", str(trained / "recipe.yaml"), "--out", str(trained / "base2"))
    assert "no warm_start" in line


def test_a_warm_started_base_is_trained_once_and_can_be_made_apart(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"prompt": f"i feel sad {i}", "response": f"you feel sad about {i}"}) for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    start = "{scratch: {vocab_size: 700, d_model: 16, d_ff: 16, heads: 2}, fit: {steps: 2, batch_size: 4}}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((trained / "recipe.yaml").read_text(), encoding="utf-8")
    common = [
        "--set", "data.sources.0.response=response", "--set", f"base={{warm_start: {start}}}",
        "--set", "rl.stop.max_steps=1",
    ]  # fmt: skip
    assert main(["warm-start", str(recipe), "--out", str(tmp_path / "base"), *common]) == 0
    assert "exists" in refused(capsys, "warm-start", str(recipe), "--out", str(tmp_path / "base"), *common)
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), *common]) == 0
    made = (tmp_path / "out" / "base" / "model.safetensors").read_bytes()
    assert made == (tmp_path / "base" / "model.safetensors").read_bytes()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_rank(rank: int, shared: dict[str, str], command: list[str]) -> int:
    """One of the processes that `torchrun` would start."""
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
    return main(command)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_recipe, write_causal_recipe])
def test_two_processes_train_what_one_trains(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Prompts shared out, gradients added up (gloo, on the CPU): the same run up to rounding."""
    recipe = write(tmp_path)
    values = ["--set", "rl.stop.max_steps=3", "--set", "lora.dropout=0", "--set", "rl.learning_rate=1e-3"]
    assert main(["train", str(recipe), "--out", str(tmp_path / "one"), *values]) == 0
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "ACCELERATE_USE_CPU": "true"}
    command = ["train", str(recipe), "--out", str(tmp_path / "two"), *values]
    processes = [started(_as_rank, rank, shared, command) for rank in range(2)]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    from safetensors.torch import load_file

    reports: list[dict[str, Any]] = [
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")
    ]
    for name in ("reflection", "empathy", "fluency"):
        one, two = (report["objectives"][name] for report in reports)
        for counted in ("prompts", "samples", "tokens", "validation_samples", "validation_tokens"):
            assert one["consumption"][counted] == two["consumption"][counted]
        assert one["validation"] == pytest.approx(two["validation"], abs=1e-6)
        first, second = (
            load_file(tmp_path / run / "adapters-last" / name / "adapter_model.safetensors") for run in ("one", "two")
        )
        for key, value in first.items():
            assert float((value - second[key]).abs().max()) < 2e-4  # AdamW's first steps enlarge rounding
