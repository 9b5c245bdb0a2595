"""The supervised start of adapters: other people's loss and gradient, lockstep, kill and resume, faults, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from emorl_cli.main import main
from emorl_core.adapters.writer import write_peft
from emorl_core.ensemble import Ensemble
from emorl_core.text.tokenizer import HuggingFaceTokenizer
from tests.core.causal_reference import SeparateModels
from tests.core.test_causal_training import trained_peft
from tests.learn.causal_tasks import END, SYSTEM, write_causal_recipe
from tests.learn.test_resume import kill_once_logged, same_run, write_recipe
from tests.learn.test_trainer_against_peft import compare
from tests.learn.trainer_tasks import NAMES, TEXTS
from training.config import RecipeError
from training.pipeline.pairs import given_records
from training.pipeline.plan import make_plan
from training.pipeline.prepare import load_data
from training.pipeline.run import Places, train
from training.pipeline.workshop import Joint, Workshop, open_workshop
from training.recipe.recipe import load_recipe
from training.rl import checkpoint
from training.rl.given import Given
from training.rl.gradients import GradientStep, TrainingGroup
from training.rl.processes import Processes
from training.rl.rewards import FixedMix
from training.rl.stacks import falling, warmed_up
from training.rl.supervised import FOLDER, SupervisedStart

REPLIES = {"reflection": "you say {}", "empathy": "{} is sad", "fluency": "yes {}"}
FIT = {"steps": 6, "batch_size": 4, "learning_rate": 2e-2, "warmup_steps": 2}
RL = {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 24, "stop": {"rule": "steps", "max_steps": 1}}


def pairs_file(folder: Path, name: str, reply: str, rows: int = 8) -> dict[str, Any]:
    lines = [json.dumps({"prompt": text, "response": reply.format(text[:8].strip())}) for text in TEXTS[:rows]]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "jsonl", "path": f"{name}.jsonl", "response": "response"}


def started_recipe(folder: Path, kind: str = "causal", names: tuple[str, ...] = NAMES, **values: Any) -> Path:
    """A recipe with pairs for `names`. No prompt of theirs is one of the recipe's own."""
    sources = {name: [pairs_file(folder, name, REPLIES[name])] for name in names}
    given = {"adapter_start": {**FIT, "sources": sources}, "rl": RL, **values}
    if kind == "causal":
        lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "act_on": "reply"}
        return write_causal_recipe(folder, **{"lora": lora, **given})
    path = write_recipe(folder)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    rl = {**raw["rl"], **RL}
    path.write_text(yaml.safe_dump({**raw, **given, "rl": rl}), encoding="utf-8")
    return path


def workshop_of(path: Path) -> Workshop:
    recipe = load_recipe(path)
    data = load_data(recipe, path.parent)
    return open_workshop(recipe, path.parent, data, Processes(device="cpu"), path.parent / "made")


def events(run: Path, name: str) -> list[dict[str, Any]]:
    records = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["event"] == name]


# -- what is learned ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act_on", ["all", "reply"])
def test_the_gradient_is_that_of_the_mean_cross_entropy_of_peft(
    tmp_path: Path, act_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each objective's replies alone, the end of the turn included."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "act_on": act_on}
    trainer = workshop_of(started_recipe(tmp_path, lora=lora)).trainer(tmp_path / "run")
    taken: list[tuple[dict[str, Any], Mapping[int, list[TrainingGroup]], dict[int, list[Tensor]], Any]] = []
    compute = GradientStep.compute

    def noting(self: GradientStep, batch: Any) -> Any:
        before = {o.name: trainer.stacks.adapter(o.lane, o.name, o.fresh) for o in trainer.objectives}
        found = compute(self, batch)
        gradients = {0: [gradient.clone() for gradient in trainer.stacks.gradients()]}
        taken.append((before, batch, gradients, found))
        return found

    monkeypatch.setattr(GradientStep, "compute", noting)
    trainer.start()
    before, batch, gradients, found = taken[3]
    (end,) = trainer.task.model.facts.eos_token_ids
    for tensor, gradient in zip(trainer.stacks.gradients(), gradients[0], strict=True):
        tensor.copy_(gradient)
    for objective in trainer.objectives:
        folder = tmp_path / objective.name
        write_peft(before[objective.name], folder, task="CAUSAL_LM")
        judge = SeparateModels(tmp_path / "base", [folder])
        trained_peft(judge)
        head = judge.models[0].get_output_embeddings()
        groups = batch[objective.lane]
        assert all(group.replies[0][-1] == end for group in groups)
        total = torch.zeros(())
        for group in groups:
            (reply,) = group.replies
            ids = torch.tensor([[*group.source, *reply[:-1]]])
            logits = head(judge.hidden_of(1, ids, len(group.source))[0, len(group.source) - 1 :])
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(reply), reduction="sum")
        loss = total / sum(group.tokens for group in groups)
        loss.backward()
        assert found.measures[objective.lane].loss == pytest.approx(float(loss.detach()), rel=1e-4)
        judged = {
            name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
            for name, parameter in judge.models[1].named_parameters()
            if parameter.grad is not None
        }
        assert max(float(gradient.abs().max()) for gradient in judged.values()) > 1e-3
        compare(trainer.stacks, objective.lane, judged)


@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_adapters_learn_their_replies_and_the_reinforcement_goes_on_from_there(tmp_path: Path, kind: str) -> None:
    fit = {**FIT, "steps": 40, "batch_size": 8}
    path = started_recipe(tmp_path, kind)
    recipe = load_recipe(path, [f"adapter_start.{key}={value}" for key, value in fit.items()])
    report: Any = train(recipe, tmp_path, Places(tmp_path / "out"))
    fitted = events(tmp_path / "out.run" / FOLDER, "fit")
    assert [record["step"] for record in fitted] == list(range(1, 41))
    for name in NAMES:
        assert fitted[-1]["loss"][name] < 0.7 * fitted[0]["loss"][name]
        assert report["objectives"][name]["consumption"]["pairs"] == 40 * 8
    validations = events(tmp_path / "out.run", "validation")
    assert [record["step"] for record in validations][:2] == [0, 0]  # the base, then the fitted adapters
    (step,) = events(tmp_path / "out.run", "step")
    assert all(own["kl_k3"] > 0.05 for own in step["objectives"].values()), "the pull is to the bare base"
    assert Ensemble.load(tmp_path / "out", device="cpu", dtype="float32").generate("i feel sad", max_new_tokens=4)


def test_prompts_that_no_adapter_acts_on_are_read_once_for_all_objectives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = workshop_of(started_recipe(tmp_path)).trainer(tmp_path / "run")
    read: list[int] = []
    model: Any = trainer.task.model
    whole = model.whole
    monkeypatch.setattr(model, "whole", lambda readings: read.append(len(readings)) or whole(readings))
    given = trainer.task.given
    assert given is not None
    stage = SupervisedStart(
        trainer.task, given, trainer.stacks, trainer.objectives, Processes(device="cpu"), tmp_path, lambda record: None
    )
    stage.run(lambda faults, where: None)
    assert read == [4] * 6  # the distinct prompts of each step, not those of each objective


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [falling(0.1, 4, 12)(step) for step in range(1, 13)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4] == 0.1
    assert all(one > two > 0 for one, two in pairwise(rates[4:]))
    assert falling(0.1, 0, 1)(1) == 0.1
    assert [warmed_up(0.1, 2)(step) for step in (1, 2, 3)] == [0.05, 0.1, 0.1]


def test_one_adapter_for_all_scorers_learns_from_the_replies_of_all(tmp_path: Path) -> None:
    trainer = workshop_of(started_recipe(tmp_path)).trainer(tmp_path / "run", joint=Joint("all", FixedMix.even(NAMES)))
    given = trainer.task.given
    assert given is not None
    assert {name: len(pairs) for name, pairs in given.pairs.items()} == {"all": 3 * 8}
    trainer.run()
    assert trainer.objectives[0].consumption.pairs == 6 * 4


def test_an_objective_without_pairs_begins_as_the_base(tmp_path: Path) -> None:
    path = started_recipe(tmp_path, names=("empathy",))
    trainer = workshop_of(path).trainer(tmp_path / "run")
    trainer.start()
    moved = {
        o.name: bool(trainer.stacks.adapter(o.lane, o.name, o.fresh).modules)
        and any(bool(pair.b.any()) for pair in trainer.stacks.adapter(o.lane, o.name, o.fresh).modules.values())
        for o in trainer.objectives
    }
    assert moved == {"reflection": False, "empathy": True, "fluency": False}


# -- kill, resume, faults ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_resuming_after_kill_9_in_the_supervised_start_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    compute = {"device": "cpu", "checkpoint_every": 2}
    path = started_recipe(tmp_path, kind, compute=compute)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["adapter_start"]["steps"] = 30
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    whole, killed = Places(tmp_path / "whole"), Places(tmp_path / "killed")
    train(load_recipe(path), tmp_path, whole)
    kill_once_logged('"event": "fit", "step": 5', killed.run / FOLDER / "log.jsonl", path, killed)
    saved = checkpoint.latest(killed.run / FOLDER)
    assert saved is not None
    assert 4 <= saved.step < 30
    assert checkpoint.latest(killed.run) is None
    train(load_recipe(path), tmp_path, killed, resume=True)
    same_run(whole.bundle, killed.bundle)
    assert [record["step"] for record in events(killed.run / FOLDER, "fit")] == list(range(1, 31))


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_resuming_at_any_step_gives_the_same_bits(
    tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = workshop_of(started_recipe(tmp_path))
    whole = shop.trainer(tmp_path / "whole")
    whole.run()

    class Killed(BaseException):
        pass

    save = SupervisedStart._save

    def killing(self: SupervisedStart) -> None:
        save(self)
        if self._taken == stop_at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedStart, "_save", killing)
        with pytest.raises(Killed):
            shop.trainer(tmp_path / "run").run()
    torch.rand(3)  # the new process has another random state
    again = shop.trainer(tmp_path / "run")
    again.run(resume=True)
    for one, two in zip(whole.objectives, again.objectives, strict=True):
        mine = [*whole.stacks.values(one.lane), *one.best]
        assert all(torch.equal(a, b) for a, b in zip(mine, [*again.stacks.values(two.lane), *two.best], strict=True))
        assert (one.stop, one.best_mean, one.consumption.pairs) == (two.stop, two.best_mean, two.consumption.pairs)


def test_a_resume_with_other_pairs_is_refused(tmp_path: Path) -> None:
    path = started_recipe(tmp_path)
    recipe, places = load_recipe(path), Places(tmp_path / "out")
    train(recipe, tmp_path, places)
    pairs_file(tmp_path, "empathy", "oh {}")
    with pytest.raises(RecipeError, match="is of another pairs"):
        train(recipe, tmp_path, places, resume=True, overwrite=True)


def test_an_objective_whose_loss_is_not_finite_ends_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = workshop_of(started_recipe(tmp_path)).trainer(tmp_path / "run")
    groups = SupervisedStart._groups

    def broken(self: SupervisedStart, name: str) -> list[TrainingGroup]:
        found = groups(self, name)
        if name == "empathy" and self._taken == 2:
            found = [TrainingGroup(group.source, group.replies, (math.inf,)) for group in found]
        return found

    monkeypatch.setattr(SupervisedStart, "_groups", broken)
    trainer.run()
    states = {o.name: (o.status, o.consumption.pairs) for o in trainer.objectives}
    assert states == {"reflection": ("finished", 24), "empathy": ("failed", 8), "fluency": ("finished", 24)}
    (failed,) = (o for o in trainer.objectives if o.status == "failed")
    assert failed.reason == "the loss is not finite; at step 3 of adapter_start"
    assert all(bool(value.isfinite().all()) for value in trainer.stacks.values(failed.lane))


def test_a_run_whose_objectives_all_fail_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = workshop_of(started_recipe(tmp_path)).trainer(tmp_path / "run")
    groups = SupervisedStart._groups
    monkeypatch.setattr(
        SupervisedStart,
        "_groups",
        lambda self, name: [TrainingGroup(g.source, g.replies, (math.inf,)) for g in groups(self, name)],
    )
    assert {objective.status for objective in trainer.run()} == {"failed"}


# -- what the recipe says ----------------------------------------------------------------------------------------------


def test_a_reply_is_what_the_chat_template_writes_and_long_ones_are_left_out(tmp_path: Path) -> None:
    path = started_recipe(tmp_path)
    told: list[str] = []
    recipe = load_recipe(path, ["rl.max_new_tokens=16"])
    data = load_data(recipe, tmp_path)
    shop = open_workshop(recipe, tmp_path, data, Processes(device="cpu"), tmp_path / "made", say=told.append)
    assert shop.pairs is not None
    given: Given = shop.pairs.given
    tokenizer = HuggingFaceTokenizer(tmp_path / "base")
    (end,) = tokenizer.encode(END)
    for pair in given.pairs["fluency"]:
        text = tokenizer.decode(pair.source)
        assert text.startswith(f"system\n{SYSTEM}\nuser\n")
        assert pair.reply[-1] == end
        assert end not in pair.reply[:-1]
    whole = [REPLIES["empathy"].format(text[:8].strip()) for text in TEXTS]
    assert [tokenizer.decode(pair.reply) for pair in given.pairs["empathy"]] == [t for t in whole if len(t) < 16]
    left = sum(len(reply.format(text[:8].strip())) >= 16 for reply in REPLIES.values() for text in TEXTS)
    assert told[-1].startswith("adapter_start: pairs ")
    assert told[-1].endswith(f"0 prompts cut, {left} replies too long and left out")


def test_no_prompt_that_is_validated_or_tested_on_is_fitted_on(tmp_path: Path) -> None:
    path = started_recipe(tmp_path)
    recipe = load_recipe(path)
    data = load_data(recipe, tmp_path)
    held = [record.prompt for part in ("validation", "test") for record in data.parts[part]]
    rows = [json.dumps({"prompt": prompt.upper(), "response": "no"}) for prompt in held]
    with (tmp_path / "empathy.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(rows))
    found = given_records(recipe, tmp_path, data)
    assert held
    assert len(found["empathy"]) == len(found["fluency"]) == 8


def test_the_plan_names_the_stage_and_one_objective_takes_its_own_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = started_recipe(tmp_path, names=("empathy", "fluency"))
    plan = make_plan(load_recipe(path), tmp_path)
    assert plan["adapter_start"] == {"records": {"empathy": 8, "fluency": 8}, "steps": 6, "batch_size": 4}
    assert main(["train", str(path), "--dry-run"]) == 0
    line = "adapter start: 6 steps of 4 an objective on records 8 of empathy, 8 of fluency"
    assert line in capsys.readouterr().out.splitlines()
    recipe = load_recipe(path)
    start = recipe.restricted(["empathy"]).adapter_start
    assert start is not None
    assert set(start.sources) == {"empathy"}
    assert recipe.restricted(["reflection"]).adapter_start is None


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            ["adapter_start.sources.empathi=[{kind: exchanges}]"],
            "sources.empathi is no objective (did you mean 'empathy'?)",
        ),
        (["adapter_start.sources.empathy=[]"], "sources.empathy: name at least one data set"),
        (["adapter_start.sources={}"], "adapter_start.sources"),
        (["adapter_start.sources.empathy=[{kind: exchange}]"], "adapter_start.sources.empathy.0.kind is 'exchange'"),
        (["adapter_start.steps=0"], "adapter_start.steps"),
        (["adapter_start.batch_size=0"], "adapter_start.batch_size"),
        (["adapter_start.learning_rate=0"], "adapter_start.learning_rate"),
        (["adapter_start.step=3"], "unknown key 'step' (did you mean 'steps'?)"),
        (
            ["rl.max_new_tokens=4"],
            ": every reply has more than 4 tokens (rl.max_new_tokens)",
        ),
        (
            ["adapter_start.sources.empathy=[{kind: jsonl, path: prompts.jsonl}]"],
            "adapter_start.sources.empathy: no record has a reply to fit on",
        ),
    ],
)
def test_what_cannot_be_fitted_on_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: list[str], said: str
) -> None:
    path = started_recipe(tmp_path)
    options = [part for each in sets for part in ("--set", each)]
    assert main(["train", str(path), "--out", str(tmp_path / "refused"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emorl: error:")]
    assert said in line
    assert not (tmp_path / "refused").exists()


def test_adapters_can_be_saved_in_half_the_space(tmp_path: Path) -> None:
    path = started_recipe(tmp_path)
    for save_as in ("float32", "bfloat16"):
        train(load_recipe(path, [f"lora.save_as={save_as}"]), tmp_path, Places(tmp_path / save_as))
    sizes = [
        (tmp_path / name / "adapters/empathy/adapter_model.safetensors").stat().st_size
        for name in ("float32", "bfloat16")
    ]
    assert sizes[1] < 0.75 * sizes[0]
    assert Ensemble.load(tmp_path / "bfloat16", device="cpu").generate("i feel sad", max_new_tokens=4).token_ids
