"""A recipe with a decoder-only base from end to end: train, search, evaluate, serve; killed and resumed; warm-started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from emorl_cli.main import main
from emorl_core.adapters.adapter import read_peft
from emorl_core.bundles.bundle import Bundle, ChatSpec
from emorl_core.ensemble import Ensemble
from emorl_core.text.tokenizer import HuggingFaceTokenizer
from server.settings import load_settings
from tests.builders import outdated_peft
from tests.http.harness import live
from tests.learn.causal_tasks import START, SYSTEM, TURNS, tiny_chat_base, write_causal_recipe
from tests.learn.test_resume import kill_after_step, same_run
from tests.learn.trainer_tasks import NAMES, TEXTS
from training.evaluation.methods.methods import method_names
from training.pipeline.base import worded
from training.pipeline.plan import make_plan
from training.pipeline.prepare import encode, load_data
from training.pipeline.run import Places, train
from training.recipe.recipe import load_recipe, parse_recipe
from training.rl import checkpoint

ROOT = Path(__file__).parents[2]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
RL = {"max_new_tokens": 8, "stop": {"rule": "steps", "max_steps": 3}, "learning_rate": 2e-2}
EVALUATION = {"test_prompts": 3, "search_prompts": 2, "search_levels": 1}
SPLITS = {
    "sources": [{"kind": "jsonl", "path": "prompts.jsonl"}],
    "splits": {"train": 0.6, "validation": 0.2, "test": 0.2},
}


def trained_in(folder: Path, act_on: str, **values: Any) -> Path:
    """The folder of a recipe, and `out` beside it."""
    recipe = write_causal_recipe(
        folder, lora={**LORA, "act_on": act_on}, rl=RL, evaluation=EVALUATION, data=SPLITS, **values
    )
    assert main(["train", str(recipe), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture(scope="module", params=["all", "reply"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_in(tmp_path_factory.mktemp(request.param), request.param)


def test_the_bundle_holds_peft_adapters_of_its_kind(trained: Path) -> None:
    bundle = Bundle.open(trained / "out")
    assert bundle.spec.chat is not None
    assert (bundle.spec.chat.system, bundle.spec.prompt_template) == (SYSTEM, "{prompt}")
    activated = "reply" in trained.name
    for place in ("adapters", "adapters-last"):
        for name in NAMES:
            config = json.loads((trained / "out" / place / name / "adapter_config.json").read_text())
            assert (config["task_type"], config["peft_type"], config["lora_dropout"]) == ("CAUSAL_LM", "LORA", 0.1)
            assert ("alora_invocation_tokens" in config) == activated
    ensemble = Ensemble.load(trained / "out", device="cpu", dtype="float32")
    if activated:
        begins = read_peft(trained / "out" / "adapters" / "empathy", "empathy").invocation_tokens
        assert begins is not None
        assert ensemble.encode("i feel sad")[-len(begins) :] == begins
        assert ensemble.tokenizer.encode(f"{START}assistant\n") == list(begins)


def test_against_peft_a_served_objective_says_what_its_adapter_says(trained: Path) -> None:
    """Prompts as the bundle renders them, greedy, through PEFT's own generate."""
    ensemble = Ensemble.load(trained / "out", device="cpu", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(trained / "out" / "base").eval()
    (end,) = ensemble.engine.model.facts.eos_token_ids
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=end)
    with outdated_peft():
        model = PeftModel.from_pretrained(base, trained / "out" / "adapters" / "empathy").eval()
    for text in TEXTS[:4]:
        ids = torch.tensor([ensemble.encode(text)])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        expected = ensemble.tokenizer.decode(out[0, ids.shape[1] :].tolist())
        assert ensemble.generate(text, weights={"empathy": 1.0}, max_new_tokens=8).text == expected


def test_search_stores_a_profile(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(trained / "out")
    recipe = str(trained / "recipe.yaml")
    options = [
        "--recipe",
        recipe,
        "--levels",
        "1",
        "--search-prompts",
        "2",
        "--max-new-tokens",
        "6",
        "--no-plots",
        "--device",
        "cpu",
    ]
    assert main(["search", out, "--profile", "found", "--out", str(trained / "search"), *options]) == 0, (
        capsys.readouterr()
    )
    assert set(Bundle.open(out).spec.profiles["found"].weights) <= {"base", *NAMES}


def test_evaluate_compares_all_methods(trained: Path) -> None:
    """Model soups of activated adapters are activated too."""
    recipe, out = trained / "recipe.yaml", trained / "evaluation"
    assert main(["evaluate", str(recipe), "--out", str(out), "--no-plots"]) == 0
    cells = {path.parent.parent.name: json.loads(path.read_text()) for path in out.glob("cells/*/*/cell.json")}
    left_out = json.loads((out / "results.json").read_text())["left_out"]
    assert set(left_out) == {"dynaopt", "prompt-only", "sentences"}, "too few rounds for a bandit; no sentences given"
    assert {*cells, *left_out} == set(method_names(load_recipe(recipe)))
    assert {cell["status"] for cell in cells.values()} == {"done"}


def test_it_is_served(trained: Path) -> None:
    settings = load_settings(port=0, bundle=str(trained / "out"), threads="1")
    with live(settings) as server, server.client() as client:
        body = {"prompt": "i feel sad", "weights": {"empathy": 1}, "max_new_tokens": 4}
        assert client.post("/generate", json=body).json()["usage"]["completion_tokens"] <= 4


def test_a_dry_run_tells_sizes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["train", str(trained / "recipe.yaml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    for name, parameters in plan["parameters"]["adapters"].items():
        written = load_file(Bundle.open(trained / "out").folder / "adapters" / name / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in written.values()) == parameters
    served = Ensemble.load(trained / "out", device="cpu", dtype="float32").parameter_bytes()
    assert plan["parameters"]["base"] * 4 == pytest.approx(served["base"], rel=0.02)
    assert plan["memory_bytes"]["total"] > served["base"]


@pytest.mark.slow
def test_resuming_after_kill_9_gives_the_parameters_of_an_uninterrupted_run(tmp_path: Path) -> None:
    steps = {"stop": {"rule": "steps", "max_steps": 7}, "validate_every": 3}
    compute = {"device": "cpu", "checkpoint_every": 2}
    path = write_causal_recipe(tmp_path, lora={**LORA, "act_on": "reply"}, rl=steps, compute=compute)
    whole, killed = Places(tmp_path / "whole"), Places(tmp_path / "killed")
    train(load_recipe(path), tmp_path, whole)
    kill_after_step(5, path, killed)
    saved = checkpoint.latest(killed.run)
    assert saved is not None
    assert 4 <= saved.step < 7
    train(load_recipe(path), tmp_path, killed, resume=True)
    same_run(whole.bundle, killed.bundle)


def test_a_warm_started_base_is_trained_on_replies_first(tmp_path: Path) -> None:
    rows = [{"prompt": f"{text} {n}", "response": f"you say {text}"} for n in range(3) for text in TEXTS]
    source = {"kind": "jsonl", "path": "prompts.jsonl", "response": "response"}
    start = {"path": "base", "fit": {"steps": 2, "batch_size": 4}}
    recipe = write_causal_recipe(tmp_path, rows, base={"warm_start": start}, data={"sources": [source]}, rl=RL)
    common = ["--set", "rl.stop.max_steps=1"]
    assert main(["warm-start", str(recipe), "--out", str(tmp_path / "made"), *common]) == 0
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), *common]) == 0
    made, served = (tmp_path / name / "model.safetensors" for name in ("made", "out/base"))
    assert made.read_bytes() == served.read_bytes()
    assert made.read_bytes() != (tmp_path / "base" / "model.safetensors").read_bytes()
    assert Ensemble.load(tmp_path / "out", device="cpu").generate("i feel sad", max_new_tokens=4).completion_tokens <= 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["lora.targets=[q, v]"], "the base has no layer 'q'; it has down_proj, gate_proj"),
        (["lora.act_on=prompt"], "lora.act_on"),
        (["chat=null", "lora.act_on=reply"], "the template puts no token of its own behind the prompt"),
        (["max_source_tokens=20"], "max_source_tokens is 20; the template takes"),
        (["rl.max_new_tokens=300"], "the base has 256 positions"),
        (["prompt_template='{prompt} so'"], "give at most one of prompt_template and chat"),
    ],
)
def test_what_does_not_fit_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], changed: list[str], said: str
) -> None:
    capsys.readouterr()
    sets = [part for each in changed for part in ("--set", each)]
    assert main(["train", str(trained / "recipe.yaml"), "--out", str(trained / "refused"), *sets]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emorl: error:")]
    assert said in line
    assert not (trained / "refused").exists()


def test_the_projects_own_recipe_plans(tmp_path: Path) -> None:
    """On a tiny base with a chat template, and replies of our own for its data."""
    tiny_chat_base(tmp_path / "base", max_position_embeddings=512)
    rows = [{"prompt": f"{text} {n}", "response": f"you say {text}"} for n in range(9) for text in TEXTS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    replies = "[{kind: jsonl, path: pairs.jsonl, response: response}]"
    places = ["data.sources", *(f"adapter_start.sources.{name}" for name in ("reflection", "empathy", "fluency"))]
    recipe = load_recipe(
        ROOT / "recipes" / "pair-smollm2.yaml", ["base={path: base}", *(f"{place}={replies}" for place in places)]
    )
    plan = make_plan(recipe, tmp_path)
    assert plan["adapter_start"]["steps"] == 200
    assert plan["data"]["cut_prompts"] == 0
    assert set(plan["parameters"]["adapters"]) == {"reflection", "empathy", "fluency"}
    assert recipe.lora.act_on == "reply"
    prompts = encode(recipe, load_data(recipe, tmp_path), HuggingFaceTokenizer(tmp_path / "base"), "CAUSAL_LM")
    assert prompts.invocation is not None


def test_the_plan_counts_a_prompt_that_no_adapter_acts_on_less(tmp_path: Path) -> None:
    recipe = write_causal_recipe(tmp_path)
    whole, reply = (
        make_plan(load_recipe(recipe, [f"lora.act_on={act_on}"]), tmp_path)["memory_bytes"]
        for act_on in ("all", "reply")
    )
    assert reply["gradient_pass"] < whole["gradient_pass"]
    assert reply["rollout"] == whole["rollout"]
    parts = make_plan(load_recipe(recipe, ["compute.prompts_per_forward=1"]), tmp_path)["memory_bytes"]
    assert parts["gradient_pass"] < whole["gradient_pass"]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("scratch: {vocab_size: 700, d_model: 16, d_ff: 16, heads: 2}", "the base reads prompts in an encoder"),
        ("path: base", "the template puts no token of its own behind the prompt"),
    ],
)
def test_adapters_that_could_not_begin_are_refused_before_a_base_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str, said: str
) -> None:
    rows = [{"prompt": f"{text} {n}", "response": f"you say {text}"} for n in range(3) for text in TEXTS]
    source = {"kind": "jsonl", "path": "prompts.jsonl", "response": "response"}
    recipe = write_causal_recipe(
        tmp_path, rows, data={"sources": [source]}, lora={**LORA, "act_on": "reply"}, prompt_template="Client: {prompt}"
    )
    options = ["--out", str(tmp_path / "out"), "--set", f"base={{warm_start: {{{start}, fit: {{steps: 1}}}}}}"]
    for more in ([], ["--dry-run"]):
        capsys.readouterr()
        assert main(["train", str(recipe), *options, *more]) == 2
        assert f"lora.act_on is 'reply', but {said}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run" / "base").exists()


WORDINGS: list[
    tuple[dict[str, Any], bool, str, dict[str, Any] | None]
] = [  # of the recipe; has the base a chat template
    ({}, True, "{prompt}", {"system": None}),
    ({}, False, "{prompt}", None),
    ({"chat": None}, True, "{prompt}", None),
    ({"chat": {"system": SYSTEM}}, True, "{prompt}", {"system": SYSTEM}),
    ({"prompt_template": "{prompt} =>"}, True, "{prompt} =>", None),
]


@pytest.mark.parametrize(("given", "has_template", "template", "chat"), WORDINGS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_recipe_that_does_not_say_how_prompts_are_put_gets_no_template_of_t5(
    given: dict[str, Any], has_template: bool, template: str, chat: dict[str, Any] | None, warm: bool, tmp_path: Path
) -> None:
    tiny_chat_base(tmp_path / "base", template=TURNS if has_template else None)
    path = write_causal_recipe(tmp_path)
    raw = yaml.safe_load(path.read_text())
    del raw["prompt_template"], raw["chat"]
    raw |= given
    if warm:
        raw["base"] = {"warm_start": {"path": "base", "fit": {"steps": 1}}}
    found = worded(parse_recipe(raw), tmp_path)
    assert (found.prompt_template, None if found.chat is None else found.chat.model_dump()) == (template, chat)
    assert worded(found, tmp_path) == found
    assert worded(parse_recipe(found.model_dump(mode="json")), tmp_path) == found, "as training.json has it"


def test_what_was_trained_without_a_word_on_prompts_is_asked_through_the_chat_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_causal_recipe(tmp_path, lora=LORA, rl=RL)
    raw = yaml.safe_load(path.read_text())
    del raw["prompt_template"], raw["chat"]
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert main(["train", str(path), "--dry-run"]) == 0
    assert "prompts go through the base's chat template" in capsys.readouterr().out
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "prompts go through the base's chat template" in capsys.readouterr().err
    ensemble = Ensemble.load(tmp_path / "out", device="cpu")
    assert (ensemble.spec.chat, ensemble.spec.prompt_template) == (ChatSpec(), "{prompt}")
    trained_on = json.loads((tmp_path / "out" / "training.json").read_text())["recipe"]
    assert (trained_on["prompt_template"], trained_on["chat"]) == ("{prompt}", {"system": None})
