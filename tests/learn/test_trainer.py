"""The trainer as a whole: what it reports, whom it stops, and whom it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from emorl_core.scorers import Checked, ScorerError, checked
from emorl_core.types import Sampling
from emorl_core.weights import BASE
from tests.learn.trainer_tasks import NAMES, TEXTS, WANTED, letter_scorer, tiny_recipe, tiny_task, tiny_trainer
from training.rl.processes import Processes
from training.rl.rollout import Rollout
from training.rl.task import Order
from training.rl.tracking import LOG_FILE
from training.rl.trainer import Trainer


def records(trainer: Trainer) -> list[dict[str, Any]]:
    lines = (trainer.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def breaking(name: str, at_call: int, answer: Any) -> Checked:
    """A sound scorer until its `at_call`-th call."""
    sound = letter_scorer("a", name)
    calls = 0

    def scorer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        scores = sound(prompts=prompts, completions=completions)
        if calls < at_call:
            return scores
        if isinstance(answer, Exception):
            raise answer
        scores[min(4, len(scores) - 1)] = answer
        return scores

    scorer.__name__ = name
    return checked(scorer)


def test_every_objective_learns_what_its_scorer_rewards(tmp_path: Path) -> None:
    recipe = tiny_recipe(rl={"stop": {"rule": "steps", "max_steps": 24}, "validate_every": 24, "learning_rate": 2e-2})
    trainer = tiny_trainer(tmp_path, recipe)
    trainer.run()
    steps = [record for record in records(trainer) if record["event"] == "step"]
    for name in NAMES:
        first = sum(step["objectives"][name]["score"] for step in steps[:4]) / 4
        last = sum(step["objectives"][name]["score"] for step in steps[-4:]) / 4
        assert last > first + 0.15, name
        assert steps[-1]["objectives"][name]["kl_k1"] > 0.1


def test_the_log_holds_measures_and_no_text(tmp_path: Path) -> None:
    told: list[Any] = []
    trainer = tiny_trainer(tmp_path, report=told.append)
    trainer.run()
    written = records(trainer)
    assert [record["event"] for record in written] == [record["event"] for record in told]
    assert [r["step"] for r in written if r["event"] == "validation"] == [0, 2, 4]
    measured = next(record for record in written if record["event"] == "step")["objectives"]
    assert set(measured) == set(NAMES)
    for name in NAMES:
        assert {"score", "reward", "loss", "kl_k1", "kl_k3", "gradient_norm", "tokens", "ended"} <= set(measured[name])
    text = (trainer.folder / LOG_FILE).read_text(encoding="utf-8")
    assert not any(prompt in text for prompt in TEXTS)


def test_steps_gives_the_records_that_the_log_holds(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, tiny_recipe(rl={"stop": {"rule": "steps", "max_steps": 2}}))
    trainer.start()
    given = []
    for record in trainer.steps():
        given.append(record)
        assert trainer.taken == record["step"]
        assert trainer.batch is not None
        for name in NAMES:
            assert [len(own) for own in trainer.batch.replies[name]] == [3] * 4
            assert [len(own) for own in trainer.batch.scores[name][name]] == [3] * 4
            assert [len(own) for own in trainer.batch.rewards[name]] == [3] * 4
    assert given == [record for record in records(trainer) if record["event"] == "step"]


def test_consumption_counts_prompts_samples_and_tokens(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.run()
    for objective in trainer.objectives:
        used = objective.consumption
        assert (used.prompts, used.samples, used.validation_samples) == (16, 48, 8)
        assert 48 <= used.tokens <= 48 * 8
        seconds = [record["seconds"] for record in records(trainer) if record["step"] and "seconds" in record]
        assert used.seconds == pytest.approx(
            sum(sum(own.values()) if isinstance(own, dict) else own for own in seconds)
        )
        assert used.own_seconds == pytest.approx(used.seconds / len(NAMES))


def test_the_same_seed_gives_the_same_adapters_and_another_seed_others(tmp_path: Path) -> None:
    def values(seed: int, run: str) -> list[torch.Tensor]:
        trainer = tiny_trainer(tmp_path, tiny_recipe(seed=seed), run=run)
        trainer.run()
        return [value for objective in trainer.objectives for value in trainer.stacks.values(objective.lane)]

    first, again, other = values(1, "a"), values(1, "b"), values(2, "c")
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_one_objective_alone_trains_as_it_does_beside_the_others(tmp_path: Path) -> None:
    """`--objective` is the same code with one lane: same samples, same adapter up to rounding."""
    recipe = tiny_recipe(lora={"rank": 4, "alpha": 8, "dropout": 0.0}, rl={"learning_rate": 1e-3})
    together = tiny_trainer(tmp_path, recipe, run="together")
    together.run()
    alone = tiny_trainer(tmp_path, recipe.restricted(["empathy"]), run="alone")
    alone.run()
    for one, other in zip(together.stacks.values(2), alone.stacks.values(1), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_a_converged_objective_leaves_the_batch_and_is_not_touched(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.start()
    steps = trainer.steps()
    next(steps)
    done = trainer.objectives[1]
    done.end("finished", "by hand")
    values = trainer.stacks.values(done.lane)
    moments = {key: moment.clone() for key, moment in done.optimizer.moments().items()}

    record = next(steps)

    assert set(record["objectives"]) == {"reflection", "fluency"}
    assert trainer.batch is not None
    assert set(trainer.batch.groups) == {1, 3}
    assert moments
    assert all(torch.equal(moment, done.optimizer.moments()[key]) for key, moment in moments.items())
    assert all(torch.equal(a, b) for a, b in zip(values, trainer.stacks.values(done.lane), strict=True))
    assert done.consumption.prompts == 4


def test_different_ranks_learning_rates_and_targets_share_the_stacks(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        objectives={
            "reflection": {"scorer": "lexical_reflection", "rank": 2, "alpha": 4},
            "empathy": {"scorer": "lexical_empathy", "rank": 8, "learning_rate": 3e-2},
            "fluency": {"scorer": "lexical_fluency"},
        },
        lora={"rank": 4, "alpha": 8, "targets": ["q", "v"]},
    )
    trainer = tiny_trainer(tmp_path, recipe)
    trainer.run()
    for objective, rank in zip(trainer.objectives, (2, 8, 4), strict=True):
        adapter = trainer.stacks.adapter(objective.lane, objective.name, objective.fresh)
        assert {module.rsplit(".", 1)[1] for module in adapter.modules} == {"q", "v"}
        assert {pair.rank for pair in adapter.modules.values()} == {rank}
        assert any(pair.b.any() for pair in adapter.modules.values())
        for a, b in zip(*[iter(trainer.stacks.values(objective.lane))] * 2, strict=True):
            assert not a[:, rank:].any()  # what pads a rank or fills an untargeted layer stays zero
            assert not b[:, rank:].any()


def test_best_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.run()
    means = [record["scores"] for record in records(trainer) if record["event"] == "validation"]
    for objective in trainer.objectives:
        own = [mean[objective.name] for mean in means]
        assert objective.best_mean == max(own)
        assert objective.best_step == 2 * own.index(max(own))
        last = trainer.stacks.values(objective.lane)
        same = all(torch.equal(a, b) for a, b in zip(objective.best, last, strict=True))
        assert same == (objective.best_step == 4)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (float("nan"), "NaN"),
        (1.5, "1.5"),
        (ValueError("my prompt"), "ValueError"),
    ],
)
def test_a_scorer_that_breaks_later_stops_only_its_objective(tmp_path: Path, answer: Any, said: str) -> None:
    scorers = {name: letter_scorer(WANTED[name], name) for name in NAMES}
    scorers["empathy"] = breaking("my_scorer", 4, answer)  # base validation, two steps, then validation at step 2
    trainer = tiny_trainer(tmp_path, scorers=scorers)
    trainer.run()
    by_name = {objective.name: objective for objective in trainer.objectives}
    failed = by_name["empathy"]
    assert failed.status == "failed"
    assert "my_scorer" in failed.reason
    assert said in failed.reason
    assert "at step 2" in failed.reason
    assert "my prompt" not in failed.reason
    if not isinstance(answer, Exception):
        assert "(prompt 3, prompts.jsonl:4; sample 0)" in failed.reason
    assert all(torch.equal(a, b) for a, b in zip(failed.best, trainer.stacks.values(failed.lane), strict=True))
    assert failed.steps == 2
    for name in ("reflection", "fluency"):
        assert (by_name[name].status, by_name[name].steps) == ("finished", 4)


def test_a_nan_in_training_names_scorer_prompt_and_step(tmp_path: Path) -> None:
    scorers = {name: letter_scorer(WANTED[name], name) for name in NAMES}
    scorers["fluency"] = breaking("my_scorer", 3, float("nan"))  # base validation, step 1, step 2
    trainer = tiny_trainer(tmp_path, scorers=scorers)
    trainer.run()
    prompt = Order(len(TEXTS), 4, seed=0).step(1)[1]  # the fifth score of a step is of its second prompt, sample 1
    reason = trainer.objectives[2].reason
    assert f"(prompt {prompt}, prompts.jsonl:{prompt + 1}; sample 1)" in reason
    assert "'my_scorer'" in reason
    assert reason.endswith("at step 2")
    assert trainer.objectives[2].steps == 1


@pytest.mark.parametrize("answer", [2.0, float("nan"), RuntimeError("out of cake")])
def test_a_scorer_that_breaks_at_its_first_call_is_refused(tmp_path: Path, answer: Any) -> None:
    scorers = {name: letter_scorer(WANTED[name], name) for name in NAMES}
    scorers["empathy"] = breaking("my_scorer", 1, answer)
    if not isinstance(answer, Exception):
        scorers["empathy"].scorer = lambda prompts, completions, **columns: [answer] * len(completions)
    with pytest.raises(ScorerError) as refused:
        tiny_trainer(tmp_path, scorers=scorers).run()
    assert refused.value.param == "objectives.empathy.scorer"


def test_weights_that_are_not_finite_stop_only_their_objective(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.start()
    for tensor in trainer.stacks.parameters():
        tensor.data[:, 0] = 1e30  # lane 1's products overflow
    record = next(trainer.steps())
    assert set(record["objectives"]) == {"empathy", "fluency"}
    assert trainer.objectives[0].status == "failed"
    assert "at step 1" in trainer.objectives[0].reason
    assert [objective.steps for objective in trainer.objectives] == [0, 1, 1]
    assert all(torch.isfinite(tensor).all() for tensor in trainer.stacks.parameters())


def test_rollout_samples_are_those_of_each_request_alone(tmp_path: Path) -> None:
    """Lanes, neighbours and slots do not change what a seed samples."""
    task = tiny_task(tmp_path, tiny_recipe())
    trainer = Trainer(task, Processes(device="cpu"), tmp_path / "run")
    trainer.start()
    next(trainer.steps())  # so that lanes differ
    sampling = Sampling(8, temperature=1.0)

    def seed_of(place: int, name: str, number: int) -> int:
        return 100 * place + number

    together = Rollout(task.model, task.tokenizer, slots=64).sample(task.train, NAMES, 3, sampling, seed_of)
    few = Rollout(task.model, task.tokenizer, slots=2).sample(task.train, NAMES, 3, sampling, seed_of)
    assert together.samples == few.samples
    replies = [sample.ids for own in together.samples["reflection"] for sample in own]
    assert len(set(replies)) > len(replies) // 2  # k samples differ
    greedy = Rollout(task.model, task.tokenizer, slots=64).greedy(task.train, [BASE, *NAMES], 8)
    assert set(greedy.samples) == {BASE, *NAMES}
    ended = [sample for own in together.samples["fluency"] for sample in own if sample.ended]
    assert all(sample.ids[-1] == 1 for sample in ended)


def test_every_pass_takes_each_prompt_once_and_steps_do_not_depend_on_earlier_ones() -> None:
    order = Order(10, 4, seed=3)
    taken = [index for step in range(5) for index in order.step(step)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    assert Order(10, 4, seed=3).step(3) == taken[12:16]
    assert [order.ends_pass(step) for step in range(5)] == [False, False, True, False, True]


def test_the_papers_preset_trains_reencoded_text_without_its_end(tmp_path: Path) -> None:
    recipe = tiny_recipe(preset="paper", rl={"stop": {"rule": "steps", "max_steps": 2, "check": "validation"}})
    trainer = tiny_trainer(tmp_path, recipe)
    trainer.start()
    batches = [trainer.batch for _ in trainer.steps()]
    assert len(batches) == 2
    replies = [
        reply
        for batch in batches
        if batch is not None
        for groups in batch.groups.values()
        for group in groups
        for reply in group.replies
    ]
    assert replies
    assert not any(1 in reply for reply in replies)
    assert all(len(reply) <= 8 for reply in replies)
    assert [objective.steps for objective in trainer.objectives] == [2, 2, 2]


def test_bf16_mixed_precision_runs_and_stays_close(tmp_path: Path) -> None:
    def losses(precision: str) -> list[float]:
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate allows one precision a program
        recipe = tiny_recipe(compute={"device": "cpu", "precision": precision}, rl={"kl": {"kind": "none"}})
        trainer = Trainer(
            tiny_task(tmp_path, recipe), Processes(device="cpu", precision=precision), tmp_path / precision  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.run()
        first = next(record for record in records(trainer) if record["event"] == "step")
        AcceleratorState._reset_state(reset_partial_state=True)
        return [first["objectives"][name]["loss"] for name in NAMES]

    for full, mixed in zip(losses("no"), losses("bf16"), strict=True):
        assert full != mixed
        assert full == pytest.approx(mixed, rel=0.1, abs=0.1)
