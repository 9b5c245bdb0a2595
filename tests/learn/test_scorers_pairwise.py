"""Judges trained in pairs: hard negatives of all kinds, constants that are searched and join, and runs that repeat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emorl_core.scorers import Context, ScorerError, build_scorer
from tests.learn import scorer_models
from tests.learn.test_exam import dialogues, graded
from training.data.records import Record, RecordSet
from training.scorers.exam.examine import ExamSettings
from training.scorers.exam.material import Material, parts_of
from training.scorers.learned.pairwise import PairLessons, Unit
from training.scorers.learned.settings import ScorerTraining
from training.scorers.learned.train import Trained, train_scorer

SHORT = ExamSettings(replies=4, graded=20, candidates=10, prompts=4)
REPLIES = RecordSet(
    "replies", tuple(Record(f"I miss my cat{n}.", f"You miss your cat{n} so much.") for n in range(20)), 20
)


def lessons(graded_sets: Sequence[RecordSet], replies: Sequence[RecordSet] = (), **changes: Any) -> PairLessons:
    values = {"seed": 0, "batch_size": 39, "prompts_per_epoch": 30} | changes
    return PairLessons(
        [parts_of(each, 0)["train"] for each in graded_sets], [parts_of(each, 0)["train"] for each in replies], **values
    )


def units(made: PairLessons, epoch: int = 0) -> list[Unit]:
    return [unit for batch in made.plan(epoch) for unit in batch]


def worse_than_good(made: PairLessons, epochs: int = 6) -> set[tuple[str, str]]:
    """(prompt, reply) of everything that a good reply of `graded` should beat."""
    found: set[tuple[str, str]] = set()
    for epoch in range(epochs):
        for unit in units(made, epoch):
            texts = list(unit.texts)
            found |= {texts[worse] for better, worse, _ in unit.pairs if "all the time" in texts[better][1]}
    return found


def test_a_prompts_own_levels_spoilt_replies_strangers_and_constants_are_all_beaten() -> None:
    data = graded()
    own = {record.prompt: record.response for record in data if record.level == 2.0}
    worse = worse_than_good(lessons([data]))
    replies = {reply for _, reply in worse}
    assert {"You worry.", "Why not go on a trip then?"} <= replies, "lower levels"
    assert any(prompt == reply for prompt, reply in worse), "the prompt copied"
    assert any(reply.startswith("I worry about my") for _, reply in worse if reply not in own), "you and I swapped"
    assert any("don't worry about your" in reply for reply in replies), "negated"
    strangers = {(prompt, reply) for prompt, reply in worse if reply in own.values()}
    assert strangers
    assert all(own[prompt] != reply for prompt, reply in strangers), "replies to others, and own replies to others"
    assert any("part of you knows what you want" in reply for reply in replies), "made-up stock phrases"
    assert not any("makes sense that you want things to change" in reply for reply in replies), "not those of the exam"


def test_a_nearest_client_is_among_the_strangers() -> None:
    made = lessons([graded()])
    material = made.sets[0]
    for unit in units(made):
        prompt = next(iter(unit.texts))[0]
        at = next(at for at in material.above_lowest if material.records[at].prompt == prompt)
        near = {str(material.records[other].response) for other in material.near[at]}
        assert near & {reply for text, reply in unit.texts if text == prompt}


def test_where_prompts_have_one_reply_levels_are_compared_between_prompts() -> None:
    made = lessons([dialogues()])
    for unit in units(made):
        texts = list(unit.texts)
        reflections = [place for place, (_, reply) in enumerate(texts) if unit.levels.get(place) == 1.0]
        others = [place for place in unit.levels if unit.levels[place] == 0.0]
        assert len(reflections) == 1
        assert others
        assert {(reflections[0], other) for other in others} <= {pair[:2] for pair in unit.pairs}
        assert all(texts[other][0] != texts[reflections[0]][0] for other in others)


def test_sets_of_replies_teach_no_levels_and_get_as_many_visits() -> None:
    made = lessons([graded()], [REPLIES])
    prompts = [next(iter(unit.texts))[0] for unit in units(made)]
    assert sum("cat" in prompt for prompt in prompts) == sum("worry" in prompt for prompt in prompts) == 15
    assert not any(unit.levels for unit in units(made))


def test_all_prompts_are_visited_before_one_comes_again_and_epochs_repeat() -> None:
    made = lessons([graded()], prompts_per_epoch=10)
    seen = [next(iter(unit.texts))[0] for epoch in range(3) for unit in units(made, epoch)]
    assert len(set(seen)) == len(seen) == 30
    again = lessons([graded()], prompts_per_epoch=10)
    assert [unit.texts for unit in units(again, 2)] == [unit.texts for unit in units(made, 2)]
    assert len(made.plan(0)) == len(made.plan(7))


def test_the_constant_that_fools_the_model_is_found_and_becomes_a_negative() -> None:
    made = lessons([graded()])

    def fooled(about: Sequence[Any], replies: Sequence[str]) -> list[float]:
        return [5.0 if reply == "You worry." else float(len(reply)) / 1000 for reply in replies]

    before = made.state()
    made.search(fooled, 0)
    assert (made.mined[0].text, made.mined[0].mean) == ("You worry.", 5.0)
    assert made.known[-1] == "You worry."
    used = [text for unit in units(made, 1) for _, text in unit.texts]
    assert sum(text in made.known for text in used) > len(units(made, 1)) / 2
    other = lessons([graded()])
    other.restore(made.state())
    assert [unit.texts for unit in units(other, 1)] == [unit.texts for unit in units(made, 1)]
    assert before["known"] == []


def test_the_loss_is_the_logistic_one_over_pairs_within_and_between_prompts() -> None:
    one, other = (
        Unit({("p", "a"): 0, ("p", "b"): 1}, [(0, 1, 2.0)], 0, {0: 1.0}),
        Unit({("q", "c"): 0}, [], 0, {0: 0.0}),
    )
    logits = torch.tensor([[1.0], [0.5], [-1.0]])
    expected = (2.0 * torch.nn.functional.softplus(torch.tensor(-0.5)) + torch.nn.functional.softplus(torch.tensor(-2.0))) / 3  # fmt: skip
    assert lessons([graded()]).loss(logits, [one, other]).item() == pytest.approx(expected.item())
    elsewhere = replace(other, number=1)
    alone = torch.nn.functional.softplus(torch.tensor(-0.5))
    assert lessons([graded()]).loss(logits, [one, elsewhere]).item() == pytest.approx(alone.item()), "another data set"


def test_length_matched_pairs_count_more() -> None:
    record = [
        Record("p", reply, level) for reply, level in (("one two three", 2.0), ("four five six", 1.0), ("x", 0.0))
    ]
    material = Material("m", tuple(record * 1), (0.0, 1.0, 2.0))
    (unit,) = units(PairLessons([material], [], seed=0, batch_size=39, prompts_per_epoch=1))
    texts = list(unit.texts)
    weight = {(texts[better][1], texts[worse][1]): weight for better, worse, weight in unit.pairs}
    assert weight["one two three", "four five six"] == 2 * weight["one two three", "x"] == 2.0


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return scorer_models.encoder(tmp_path / "encoder")


def train(encoder: Path, out: Path, **options: Any) -> Trained:
    values = {"encoder": str(encoder), "loss": "pairwise", "epochs": 3, "learning_rate": 3e-3, "max_length": 48}
    values |= {"prompts_per_epoch": 8, "freeze_embeddings": False, "device": "cpu"}
    return train_scorer(
        ScorerTraining(**values), graded(), out, also=[dialogues()], replies=[REPLIES], exam=SHORT, **options
    )


class PulledPlug(Exception):
    pass


def test_a_judge_is_trained_calibrated_examined_and_written(tmp_path: Path, encoder: Path) -> None:
    trained = train(encoder, tmp_path / "judge")
    report = trained.report
    assert [(each["name"], each["graded"]) for each in report["data"]] == [
        ("graded", True),
        ("dialogues", True),
        ("replies", False),
    ]
    assert len(report["searches"]) == 3
    assert {row["data"] for row in report["exam"]["rows"]} == {"graded", "dialogues", "replies"}
    scorer = build_scorer({"kind": "cross_encoder", "model": str(trained.folder)}, Context(device="cpu"))
    assert all(0.0 < score < 1.0 for score in scorer(["I am sad."] * 2, ["You are sad.", "Why?"]))
    card = (trained.folder / "README.md").read_text()
    assert "human over the best constant" in card
    assert "replies, 20 human replies" in card
    for path in trained.folder.iterdir():
        assert b"I worry about my" not in path.read_bytes(), "no text of the data travels with the model"


def test_a_judge_interrupted_after_an_epoch_resumes_to_the_same_bits(tmp_path: Path, encoder: Path) -> None:
    whole = train(encoder, tmp_path / "whole")

    def pull(done: int, total: int, loss: float) -> None:
        if done > total // 3 + 1:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        train(encoder, tmp_path / "resumed", progress=pull)
    resumed = train(encoder, tmp_path / "resumed", resume=True)
    assert json.dumps(resumed.report) == json.dumps(whole.report)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole.folder, resumed.folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_several_sets_are_for_pairs_only(tmp_path: Path, encoder: Path) -> None:
    config = ScorerTraining(encoder=str(encoder), loss="margin", epochs=1, device="cpu", max_length=48)
    with pytest.raises(ScorerError, match="loss margin takes one data set"):
        train_scorer(config, graded(), tmp_path / "out", replies=[REPLIES])
