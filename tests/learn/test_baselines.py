"""The compared methods: each answers what its definition says, in someone else's code where that is possible, and a run
that was killed gives the same replies."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from emorl_core.adapters.sums import weighted_sum
from emorl_core.scorers import checked
from emorl_core.types import Combine
from emorl_core.weights import anchored, resolve
from tests.apart import exit_code
from tests.builders import outdated_peft
from tests.core.reference import SeparateModels
from tests.learn.killed_methods import FITTED, METHODS, run, tiny_experiment
from tests.learn.trainer_tasks import NAMES
from training.config import RecipeError
from training.data.prompts import Prompt
from training.data.records import Record
from training.evaluation.cells import CELL_FILE, REPLIES_FILE, Cell, cell_folder, read_cell, read_replies
from training.evaluation.methods.answers import Answers
from training.evaluation.methods.experiment import Experiment
from training.evaluation.methods.generators import SoupGenerator
from training.evaluation.methods.methods import left_out, method_names, methods_of, run_cell
from training.evaluation.methods.per_prompt import predicted
from training.evaluation.methods.stages import StageName, trained
from training.evaluation.methods.weight_choice import evaluations
from training.recipe.recipe import parse_recipe
from training.search.evaluations.evaluation import name_of
from training.search.predictor import STEPS
from training.search.strategies.spaces import grid_points

SEED = 7
ADAPTERS = tuple(sorted(NAMES))  # the order in which the recipe's file has them
SEARCHED = (
    "sentences",
    "soups-raw",
    "weights",
    "probs",
    "emorl",
    "emorl-anchored",
    "per-prompt:predicted",
    "best-of:emorl",
)
MIXED = tuple(name for name in SEARCHED if name != "sentences")  # of trained adapters


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """With every method's cell of one seed."""
    made = tiny_experiment(tmp_path_factory.mktemp("methods"))
    for method in method_names(made.recipe):
        run_cell(method, SEED, made)
    return made


def cell(experiment: Experiment, method: str, seed: int = SEED) -> Cell:
    found = read_cell(experiment.out, method, seed)
    assert found is not None
    return found


def texts(experiment: Experiment, method: str) -> list[str]:
    records = [Record(prompt.text) for prompt in experiment.test]
    return [reply.text for reply in read_replies(experiment.out, cell(experiment, method), records)]


@pytest.fixture(scope="module")
def judge(experiment: Experiment) -> SeparateModels:
    folder = experiment.shared(SEED) / "adapters"
    return SeparateModels(experiment.workshop.base, [folder / name for name in ADAPTERS])


def plain_greedy(experiment: Experiment, logits: Callable[[list[tuple[int, ...]], Tensor], Tensor]) -> list[str]:
    """logits: (prompts, decoder inputs [B, T]) -> [B, V]. The text of each row up to its end."""
    prompts = [prompt.source for prompt in experiment.test]
    ids = torch.zeros(len(prompts), 1, dtype=torch.int64)
    for _ in range(experiment.recipe.rl.max_new_tokens):
        ids = torch.cat([ids, logits(prompts, ids).argmax(-1, keepdim=True)], dim=1)
    rows = [row[1:] for row in ids.tolist()]
    return [experiment.workshop.tokenizer.decode(row[: row.index(1)] if 1 in row else row) for row in rows]


def test_every_method_leaves_a_whole_cell(experiment: Experiment) -> None:
    assert list(methods_of(experiment.recipe)) == [
        "base", "prompt-only", "sentences", *(f"single:{name}" for name in ADAPTERS), "uniform", "dynaopt", "soups", "soups-raw",
        "weights", "probs", "emorl", "emorl-anchored", "per-prompt:best", "per-prompt:predicted", "best-of:base", "best-of:uniform", "best-of:emorl",
    ]  # fmt: skip
    for method in method_names(experiment.recipe):
        found = cell(experiment, method)
        assert (found.status, found.reason) == ("done", None), method
        assert len(texts(experiment, method)) == len(experiment.test)
        assert found.inference.tokens > 0
        assert found.memory.base > 0
        assert (found.search is not None) == (method in SEARCHED)


def test_consumption_is_the_sum_over_the_adapters_in_use(experiment: Experiment) -> None:
    """Nine steps of four prompts and three replies, after the supervised start."""
    assert cell(experiment, "base").consumption.prompts == 0
    for method in ("single:empathy", "uniform", "dynaopt"):
        used = cell(experiment, method).consumption
        assert (used.pairs, used.prompts, used.samples) == (FITTED, 36, 108), method
    singles = [cell(experiment, f"single:{name}").consumption for name in ADAPTERS]
    for method in ("soups", *MIXED):
        used = cell(experiment, method).consumption
        assert (used.pairs, used.prompts, used.samples) == (3 * FITTED, 108, 324)
        assert used.tokens == sum(each.tokens for each in singles)
        assert used.seconds == pytest.approx(sum(each.seconds for each in singles))
        assert {method, *used.shared_with} >= {"emorl", "soups", "probs", "single:fluency"}
        assert method not in used.shared_with
    assert cell(experiment, "uniform").consumption.shared_with == ("best-of:uniform",)


def test_curves_have_the_base_the_fitted_adapters_and_every_validation(experiment: Experiment) -> None:
    curves = cell(experiment, "emorl").curve
    assert set(curves) == set(ADAPTERS)
    joint = cell(experiment, "dynaopt").curve
    assert set(joint) == {"mean", *ADAPTERS}
    for points in (*curves.values(), *joint.values()):
        assert [(point.step, point.prompts) for point in points] == [(0, 0), (0, 0), (3, 12), (6, 24), (9, 36)]
    for i, point in enumerate(joint["mean"]):
        assert point.score == pytest.approx(sum(joint[name][i].score for name in ADAPTERS) / 3)


def test_lanes_and_memory_are_what_a_method_uses(experiment: Experiment) -> None:
    one = cell(experiment, "single:empathy").memory.adapters
    assert one > 0
    joint = len(ADAPTERS)  # as many trained parameters as the single adapters have together
    for method, adapters in (
        ("base", 0),
        ("single:empathy", 1),
        ("uniform", joint),
        ("dynaopt", joint),
        ("soups", joint),
    ):
        found = cell(experiment, method)
        assert found.inference.lane_row_steps == found.inference.tokens, method
        assert found.memory.adapters == adapters * one, method
    mixed = cell(experiment, "emorl")
    assert mixed.weights is not None
    running = sum(weight != 0 for weight in mixed.weights.values())
    assert mixed.inference.lane_row_steps == running * mixed.inference.tokens


# -- against someone else's code -------------------------------------------------------------------------------------


def test_against_hf_peft_probability_mixing_is_the_log_of_the_weighted_probabilities(
    experiment: Experiment, judge: SeparateModels
) -> None:
    weights = {"empathy": 0.5, "fluency": 0.2, "reflection": 0.3}
    mix = torch.tensor([0.0, *(weights[name] for name in ADAPTERS)])

    def logits(prompts: list[tuple[int, ...]], ids: Tensor) -> Tensor:
        each = judge.head(judge.hidden(prompts, ids)[:, :, -1])  # [N, B, V]
        return torch.einsum("n,nbv->bv", mix, each.softmax(-1)).log()

    assert answered(experiment, weights, "probs") == plain_greedy(experiment, logits)


def test_against_hf_peft_the_found_mixes_answer_as_defined(experiment: Experiment, judge: SeparateModels) -> None:
    """EMORL: head(sum w h). Anchored: head(h_0 + sum w (h - h_0))."""

    def hidden(weights: dict[str, float], prompts: list[tuple[int, ...]], ids: Tensor, *, on_base: bool) -> Tensor:
        base, *others = judge.hidden(prompts, ids)[:, :, -1]
        named = dict(zip(ADAPTERS, others, strict=True))
        if on_base:
            return judge.head(base + sum(weights[name] * (named[name] - base) for name in ADAPTERS))
        return judge.head(sum((weights[name] * named[name] for name in ADAPTERS), torch.zeros_like(base)))

    for method in ("emorl", "emorl-anchored"):
        found = dict(cell(experiment, method).weights or {})
        expected = plain_greedy(
            experiment,
            lambda prompts, ids, w=found, m=method: hidden(w, prompts, ids, on_base=m == "emorl-anchored"),  # type: ignore[misc]
        )
        assert texts(experiment, method) == expected, method


def answered(
    experiment: Experiment, weights: dict[str, float], combine: Combine, *, on_base: bool = False
) -> list[str]:
    answers = Answers(experiment)
    answers.attach(trained(experiment, "adapters", SEED, quiet).adapters(ADAPTERS))
    vector = anchored(answers.lanes, weights) if on_base else resolve(answers.lanes, weights)
    return [item.text for item in answers.answer(experiment.test, vector, combine).replies]


def test_anchored_with_all_weights_zero_is_the_base(experiment: Experiment) -> None:
    assert answered(experiment, dict.fromkeys(ADAPTERS, 0.0), "hidden", on_base=True) == texts(experiment, "base")
    assert texts(experiment, "base") != texts(experiment, "single:empathy")


def test_one_objective_alone_is_the_same_in_every_mix(experiment: Experiment) -> None:
    single = texts(experiment, "single:fluency")
    for combine in ("hidden", "probs"):
        assert answered(experiment, {"fluency": 1.0}, combine) == single
    assert answered(experiment, {"fluency": 1.0}, "hidden", on_base=True) == single


def test_texts_of_a_later_level_are_those_of_their_own_weights(experiment: Experiment) -> None:
    """A second sweep on the same engine was cut off at once: its requests had the names of the first one's."""
    answers = Answers(experiment)
    answers.attach(trained(experiment, "adapters", SEED, quiet).adapters(ADAPTERS))
    points = [{"empathy": 0.6, "fluency": 0.4}, {"reflection": 0.9, "empathy": 0.1}, {"reflection": 1.0}]
    vectors = [resolve(answers.lanes, point) for point in points]
    for combine in ("hidden", "probs"):
        answers.sweep(experiment.search, vectors[:1], combine)
        items = answers.sweep(experiment.search, vectors, combine).items
        later = [[item.text for item in items if item.weights_index == i] for i in range(len(vectors))]
        alone = [[item.text for item in answers.answer(experiment.search, v, combine).replies] for v in vectors]
        assert later == alone
        assert all(all(own) for own in later)


# -- interruptions and failures --------------------------------------------------------------------------------------


def test_a_comparison_killed_twice_gives_the_same_replies(experiment: Experiment, tmp_path: Path) -> None:
    """In the middle of the supervised start, of a training, and of the search after it."""
    for event, count in (("fitting dynaopt", 2), ("training dynaopt", 5), ("searching weights", 2)):
        assert exit_code(run, tmp_path, event, count) == -signal.SIGKILL
        assert read_cell(tmp_path / "out", "weights", SEED) is None
    run(tmp_path)
    for method in METHODS:
        whole, again = (cell_folder(out, method, SEED) for out in (experiment.out, tmp_path / "out"))
        assert (again / REPLIES_FILE).read_bytes() == (whole / REPLIES_FILE).read_bytes(), method
        assert without_seconds(again) == without_seconds(whole)


def without_seconds(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CELL_FILE).read_text())
    for part, key in (
        ("consumption", "seconds"),
        ("inference", "seconds"),
        ("inference", "ms_per_token"),
        ("inference", "first_token_ms"),
    ):
        del found[part][key]
    if found["search"] is not None:
        del found["search"]["seconds"]
    return found


def test_a_finished_cell_is_not_run_again(experiment: Experiment) -> None:
    folder = cell_folder(experiment.out, "emorl", SEED)
    before = (folder / CELL_FILE).read_bytes()
    run_cell("emorl", SEED, experiment, lambda *told: pytest.fail("it ran"))
    assert (folder / CELL_FILE).read_bytes() == before


def test_what_no_seed_changes_is_run_once(experiment: Experiment) -> None:
    for method in ("base", "sentences"):
        run_cell(method, SEED + 2, experiment, lambda *told: pytest.fail("it ran"))
        first, second = (cell_folder(experiment.out, method, seed) for seed in (SEED, SEED + 2))
        assert (second / REPLIES_FILE).read_bytes() == (first / REPLIES_FILE).read_bytes()
        before, after = cell(experiment, method), cell(experiment, method, SEED + 2)
        assert after == before.model_copy(update={"seed": SEED + 2})
    with pytest.raises(pytest.fail.Exception):  # it samples
        run_cell("best-of:base", SEED + 2, experiment, lambda *told: pytest.fail("it ran"))


def test_a_training_that_fails_fails_its_methods_only_and_can_be_run_again(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    sound = experiment.scorers["empathy"]
    calls = 0

    def breaking(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        return [2.0] * len(completions) if calls == 3 else sound(prompts=prompts, completions=completions)

    scorers = {**experiment.scorers, "empathy": checked(breaking)}
    experiment = replace(experiment, workshop=replace(experiment.workshop, scorers=scorers))
    for method in ("single:empathy", "single:fluency", "emorl"):
        run_cell(method, SEED, experiment)
    for method in ("single:empathy", "emorl"):
        found = cell(experiment, method)
        assert found.status == "failed"
        assert found.reason is not None
        assert found.reason.startswith("the training of empathy failed: ")
        assert not (cell_folder(experiment.out, method, SEED) / REPLIES_FILE).exists()
    assert cell(experiment, "single:fluency").done
    run_cell("emorl", SEED, experiment)  # the scorer is whole again
    assert cell(experiment, "emorl").done


# -- joint training --------------------------------------------------------------------------------------------------


def test_seeds_differ_and_share_the_base(experiment: Experiment) -> None:
    run_cell("uniform", SEED + 1, experiment)
    first, second = (experiment.shared(seed) / "uniform/uniform/adapter_model.safetensors" for seed in (SEED, SEED + 1))
    assert first.read_bytes() != second.read_bytes()


def test_joint_training_takes_logs_unless_the_recipe_says_otherwise(experiment: Experiment, tmp_path: Path) -> None:
    """Single objectives take standardised scores here; only the joint training may differ."""
    other = tiny_experiment(tmp_path)
    rl = other.recipe.rl.model_copy(update={"joint_reward": "standardised"})
    recipe = other.recipe.model_copy(update={"rl": rl})
    other = replace(other, workshop=replace(other.workshop, recipe=recipe))

    def rewards_and_weights(made: Experiment, name: StageName) -> tuple[set[str], list[bytes]]:
        stage = trained(made, name, SEED, quiet)
        files = sorted(stage.folder.rglob("*.safetensors"))
        return {about["reward"] for about in stage.about.values()}, [file.read_bytes() for file in files]

    assert rewards_and_weights(experiment, "adapters") == rewards_and_weights(other, "adapters")
    logs, weights = rewards_and_weights(experiment, "uniform")
    told, moved = rewards_and_weights(other, "uniform")
    assert (logs, told) == ({"log"}, {"standardised"})
    assert weights != moved


# -- weights and budgets ---------------------------------------------------------------------------------------------


def test_every_search_runs_as_many_evaluations(experiment: Experiment) -> None:
    counts = {method: cell(experiment, method).search for method in SEARCHED if method != "per-prompt:predicted"}
    most = evaluations(len(ADAPTERS), experiment.levels)
    for method, cost in counts.items():
        assert cost is not None
        assert most - experiment.levels < cost.evaluations <= most, method


def test_raw_soups_add_the_updates_up_whatever_the_weights_sum_to(
    experiment: Experiment, judge: SeparateModels
) -> None:
    weights = dict(cell(experiment, "soups-raw").weights or {})
    assert all(0 <= weight <= 1 for weight in weights.values())
    answers = Answers(experiment)
    adapters = trained(experiment, "adapters", SEED, quiet).adapters(ADAPTERS)
    double = SoupGenerator(answers, experiment.search, adapters).soup("soup", (1.0, 1.0, 0.5))
    for module, pair in double.modules.items():
        parts = [adapter.modules[module] for adapter in adapters]
        expected = sum(
            (w * part.scale * part.b @ part.a for w, part in zip((1.0, 1.0, 0.5), parts, strict=True)),
            start=torch.zeros_like(parts[0].b @ parts[0].a),
        )
        torch.testing.assert_close(pair.scale * pair.b @ pair.a, expected)


def test_a_run_too_short_for_dynaopt_leaves_it_out_and_says_why(experiment: Experiment) -> None:
    name = "dynaopt"
    assert set(left_out(experiment.recipe)) == {name}
    assert "would have 3 rounds" in left_out(experiment.recipe)[name]
    stop = experiment.recipe.rl.stop.model_copy(update={"max_steps": 10_000})
    rl = experiment.recipe.rl.model_copy(update={"stop": stop})
    assert not left_out(experiment.recipe.model_copy(update={"rl": rl}))


# -- without training, and best of n ---------------------------------------------------------------------------------


def test_against_hf_best_of_n_gives_what_a_loop_over_single_replies_would_choose(experiment: Experiment) -> None:
    """Each reply generated by itself, each scored by itself; the first of the best."""
    answers = Answers(experiment)
    answers.attach(trained(experiment, "uniform", SEED, quiet).adapters(("uniform",)))
    vector = resolve(answers.lanes, {"uniform": 1.0})
    chosen, rows, made = [], 0, 0
    sampled, _ = answers.sampled(experiment.test, vector, len(ADAPTERS), SEED)
    for prompt, replies in zip(experiment.test, sampled, strict=True):
        best: tuple[float, str] | None = None
        for reply in replies:
            rows, made = rows + len(reply.token_ids), made + 1
            asked = {"prompts": [prompt.text], "completions": [reply.text]}
            score = sum(round(scorer(**asked)[0], 6) for scorer in experiment.scorers.values()) / len(ADAPTERS)
            if best is None or score > best[0]:
                best = (score, reply.text)
        assert best is not None
        chosen.append(best[1])
    found = cell(experiment, "best-of:uniform")
    assert texts(experiment, "best-of:uniform") == chosen
    assert made == len(ADAPTERS) * len(experiment.test)
    distinct = sum(len({reply.text for reply in replies}) for replies in sampled)
    assert found.inference.scored == distinct, "a text is scored once"
    assert found.inference.lane_row_steps == rows, "what was not chosen was computed too"
    assert len({reply.text for own in sampled for reply in own}) > len(experiment.test), "replies differ"


def test_sampled_replies_do_not_depend_on_what_runs_beside_them(experiment: Experiment) -> None:
    answers = Answers(experiment)
    vector = resolve(answers.lanes, {"base": 1.0})
    together, _ = answers.sampled(experiment.test, vector, 3, SEED)
    fewer, _ = answers.sampled(experiment.test[:2], vector, 2, SEED)
    assert [[reply.text for reply in own] for own in fewer] == [
        [reply.text for reply in own[:2]] for own in together[:2]
    ]
    other, _ = answers.sampled(experiment.test, vector, 3, SEED + 1)
    assert [[reply.text for reply in own] for own in other] != [[reply.text for reply in own] for own in together]


def test_best_of_n_takes_as_many_rows_as_its_lanes_and_replies(experiment: Experiment) -> None:
    for method in ("best-of:base", "best-of:uniform"):
        found = cell(experiment, method).inference
        assert found.lane_row_steps >= found.tokens, method
    weights = cell(experiment, "best-of:emorl").weights
    assert weights == cell(experiment, "emorl").weights, "the mix that was searched once"


def test_against_hf_an_instruction_stands_in_front_of_the_prompt(experiment: Experiment, judge: SeparateModels) -> None:
    recipe = experiment.recipe
    instruction = recipe.evaluation.instruction
    encode = experiment.workshop.tokenizer.encode_prompt
    before, _, after = recipe.prompt_template.partition("{prompt}")
    told = [tuple(encode(each.text, before=f"{instruction} {before}", after=after)) for each in experiment.test]
    assert all(len(ids) < recipe.max_source_tokens for ids in told)

    def logits(prompts: list[tuple[int, ...]], ids: Tensor) -> Tensor:
        return judge.head(judge.hidden(told, ids)[0][:, -1])

    assert texts(experiment, "prompt-only") == plain_greedy(experiment, logits)


def test_against_hf_sentences_are_mixed_as_last_hidden_states_of_the_base(
    experiment: Experiment, judge: SeparateModels
) -> None:
    recipe = experiment.recipe
    found = dict(cell(experiment, "sentences").weights or {})
    encode = experiment.workshop.tokenizer.encode_prompt
    before, _, after = recipe.prompt_template.partition("{prompt}")
    told = {
        name: [tuple(encode(each.text, before=f"{sentence} {before}", after=after)) for each in experiment.test]
        for name, sentence in recipe.evaluation.sentences.items()
    }

    def logits(prompts: list[tuple[int, ...]], ids: Tensor) -> Tensor:
        each = [found[name] * judge.hidden(told[name], ids)[0][:, -1] for name in told if found[name]]
        return judge.head(torch.stack(each).sum(0))

    assert texts(experiment, "sentences") == plain_greedy(experiment, logits)
    assert cell(experiment, "sentences").consumption.prompts == 0


def test_weights_are_one_lane_and_give_what_the_soup_of_them_gives(experiment: Experiment) -> None:
    """An exact sum of the updates as an adapter of its own; `test_combine_weights` has PEFT's."""
    found = cell(experiment, "weights")
    assert found.combine == "weights"
    assert found.inference.lane_row_steps == found.inference.tokens
    adapters = trained(experiment, "adapters", SEED, quiet).adapters(ADAPTERS)
    answers = Answers(experiment)
    weights = dict(found.weights or {})
    answers.attach([weighted_sum("sum", adapters, [weights[name] for name in ADAPTERS])])
    replies = answers.answer(experiment.test, resolve(answers.lanes, {"sum": 1.0})).replies
    assert [reply.text for reply in replies] == texts(experiment, "weights")


def test_against_peft_every_point_of_the_weight_space_search_is_a_merged_model(experiment: Experiment) -> None:
    """The search's record of its points beside models that PEFT summed and merged into the base."""
    folder = trained(experiment, "adapters", SEED, quiet).folder
    log = experiment.shared(SEED) / "search-weights.jsonl"
    points = [line for line in map(json.loads, log.read_text().splitlines()) if "point" in line]
    assert len({tuple(line["texts"]) for line in points}) > 1, "the weights matter"
    best = max(points, key=lambda line: sum(line["means"].values()))
    assert best["point"] == [dict(cell(experiment, "weights").weights or {}).get(name, 0.0) for name in ADAPTERS]
    with outdated_peft():
        base = AutoModelForSeq2SeqLM.from_pretrained(experiment.workshop.base)
        model: Any = PeftModel.from_pretrained(base, folder / ADAPTERS[0], ADAPTERS[0]).eval()
        for name in ADAPTERS[1:]:
            model.load_adapter(folder / name, name)
    for number, line in enumerate([best, *points[::4]]):
        used = {name: weight for name, weight in zip(ADAPTERS, line["point"], strict=True) if weight}
        model.add_weighted_adapter([*used], [*used.values()], f"sum {number}", combination_type="cat")
        model.set_adapter(f"sum {number}")
        model.merge_adapter()
        replies = [merged_greedy(experiment, model, prompt) for prompt in experiment.search]
        model.unmerge_adapter()
        assert line["texts"] == [name_of(reply) for reply in replies], line["point"]
        rewards = [
            mean_reward(experiment, prompt.text, reply)
            for prompt, reply in zip(experiment.search, replies, strict=True)
        ]
        assert sum(line["means"].values()) / len(ADAPTERS) == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)


@torch.inference_mode()
def merged_greedy(experiment: Experiment, model: Any, prompt: Prompt) -> str:
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(experiment.recipe.rl.max_new_tokens):
        logits = model(input_ids=torch.tensor([prompt.source]), decoder_input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    row = ids[0, 1:].tolist()
    return experiment.workshop.tokenizer.decode(row[: row.index(1)] if 1 in row else row)


def test_a_sentence_for_some_objectives_only_is_refused(experiment: Experiment) -> None:
    values = experiment.recipe.model_dump(mode="json")
    values["evaluation"]["sentences"] = {"empathy": "Be kind."}
    with pytest.raises(RecipeError, match="sentences lacks"):
        parse_recipe(values)
    values["evaluation"]["sentences"] = {"empathi": "Be kind."}
    with pytest.raises(RecipeError, match=r"sentences\.empathi is no objective"):
        parse_recipe(values)


# -- weights of each prompt, and fronts ------------------------------------------------------------------------------


def asked_alone(experiment: Experiment, vectors: list[dict[str, float]], combine: Combine) -> list[list[str]]:
    """[vectors][prompts], each vector by itself."""
    return [answered(experiment, weights, combine) for weights in vectors]


def mean_reward(experiment: Experiment, prompt: str, text: str) -> float:
    scores = [scorer(prompts=[prompt], completions=[text])[0] for scorer in experiment.scorers.values()]
    return sum(round(score, 6) for score in scores) / len(scores)


def test_the_best_text_of_each_prompt_is_what_a_loop_over_the_grid_finds(experiment: Experiment) -> None:
    vectors = [dict(zip(ADAPTERS, point, strict=True)) for point in grid_points(len(ADAPTERS), STEPS)]
    each = asked_alone(experiment, vectors, "hidden")
    for place, (prompt, text) in enumerate(zip(experiment.test, texts(experiment, "per-prompt:best"), strict=True)):
        rewards = [mean_reward(experiment, prompt.text, own[place]) for own in each]
        assert mean_reward(experiment, prompt.text, text) == pytest.approx(max(rewards))
        assert text in {own[place] for own in each}


def test_predicted_weights_are_each_prompts_own(experiment: Experiment) -> None:
    answers = Answers(experiment)
    answers.attach(trained(experiment, "adapters", SEED, quiet).adapters(ADAPTERS))
    said = predicted(experiment, answers, ADAPTERS, quiet)
    alone = [
        answers.answer([prompt], vector).replies[0].text
        for prompt, vector in zip(experiment.test, said.vectors, strict=True)
    ]
    assert texts(experiment, "per-prompt:predicted") == alone
    assert len({vector.vector for vector in said.vectors}) == len(experiment.test)


def test_against_hf_the_predictor_reads_the_bases_own_state(experiment: Experiment, judge: SeparateModels) -> None:
    answers = Answers(experiment)
    answers.attach(trained(experiment, "adapters", SEED, quiet).adapters(ADAPTERS))
    start = torch.zeros(len(experiment.test), 1, dtype=torch.int64)
    expected = judge.hidden([prompt.source for prompt in experiment.test], start)[0][:, -1]
    found = torch.from_numpy(answers.base_states(experiment.test)).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fronts_are_measured_over_the_whole_grid(experiment: Experiment) -> None:
    for method in ("sentences", "weights", "probs", "emorl"):
        front = cell(experiment, method).front
        assert front is not None
        assert (front.prompts, len(front.points)) == (2, 66)
    front = cell(experiment, "weights").front
    assert front is not None
    for point in (front.points[0], front.points[30]):
        (own,) = asked_alone(experiment, [dict(point.weights)], "weights")
        expected = [mean_reward(experiment, experiment.test[place].text, own[place]) for place in range(2)]
        assert sum(point.scores.values()) / len(ADAPTERS) == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert cell(experiment, "soups").front is None
