"""A judge over a causal model's states: what is read, how the network is fitted, runs that repeat and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emorl_core.scorers import Context, ScorerError, build_scorer
from emorl_core.scorers import states as states_module
from emorl_core.scorers.judge import NUMBERS, features_of
from emorl_core.scorers.passes import ModelPasses
from emorl_core.scorers.states import StateReader
from tests.learn import scorer_models
from tests.learn.test_exam import dialogues, graded
from tests.learn.test_scorers_pairwise import REPLIES
from training.data.records import RecordSet
from training.scorers.exam.examine import ExamSettings
from training.scorers.exam.material import parts_of
from training.scorers.exam.pairs import CONSTANT
from training.scorers.learned.heads import Contest, Fit, fit_head, won
from training.scorers.learned.judge import Lessons, Sizes, outputs_of, train_judge
from training.scorers.learned.settings import ScorerTraining
from training.scorers.learned.train import Trained

SHORT = ExamSettings(replies=3, graded=8, candidates=4, prompts=2)
FEW = Sizes(replies=6, validation=3, graded=12, between=30, constants=8, answers=2, about=3)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return scorer_models.causal(tmp_path / "base")


def slowly(reader: StateReader, prompt: str, reply: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(states [layers + 1, T + 1, D], log-likelihoods [T + 1]) of one reply in one pass without a cache."""

    def ids(text: str) -> list[int]:
        return list(reader.passes.tokenizer(text, add_special_tokens=False)["input_ids"])

    context = [*ids("Client:"), *ids(f" {prompt}"), *ids("\nCounselor:")]
    own = [*ids(f" {reply}"), *ids("\n")[-1:]]
    with torch.inference_mode():
        out = reader.passes.model(input_ids=torch.tensor([[*context, *own]]), output_hidden_states=True)
    logs = out.logits[0].log_softmax(-1)[range(len(context) - 1, len(context) + len(own) - 1), own]
    return torch.stack([layer[0, len(context) :] for layer in out.hidden_states]), logs


def test_replies_read_together_are_those_of_single_passes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "ELSEWHERE", "my mother is at home")  # this model has few positions
    reader = StateReader(str(base), None, device="cpu", dtype="float32")
    replies = ["you feel sad", "why", "it is hard and you want to sleep"]
    for reply, own in zip(replies, reader.read("i am sad", replies), strict=True):
        states, likely = slowly(reader, "i am sad", reply)
        elsewhere, other = slowly(reader, "my mother is at home", reply)
        words = max(1, states.shape[1] - 1)
        mean, away = states[1, :words].mean(0), elsewhere[1, :words].mean(0)
        torch.testing.assert_close(own.means, mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own.changed, mean - away, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own.likely, likely, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own.other_likely, other, atol=1e-4, rtol=1e-4)
        assert features_of(own).shape == (2 * reader.width + NUMBERS,)
        assert torch.isfinite(features_of(own)).all()


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of replies of every pass."""
    sizes: list[int] = []
    after = ModelPasses.after

    def counted(self: ModelPasses, prompt: Any, replies: Any) -> Any:
        sizes.append(len(replies))
        return after(self, prompt, replies)

    monkeypatch.setattr(ModelPasses, "after", counted)
    return sizes


def test_what_is_read_together_does_not_depend_on_what_was_read_before(base: Path, together: list[int]) -> None:
    """Rounding depends on it, and a training that was killed and resumed has read other replies before."""
    reader = StateReader(str(base), None, device="cpu", dtype="float32")
    replies = ["you feel sad", "why", "it is hard and you want to sleep"]
    for reply in replies:
        reader.read("i am sad", [reply])
    together.clear()
    reader.read("i am sad", replies)
    assert together == [3, 3]
    reader.read("i am sad", replies)
    assert together == [3, 3], "the same call is not computed again"


def test_judges_of_one_model_read_a_reply_once(tmp_path: Path, base: Path, together: list[int]) -> None:
    for name, data in (("one", graded()), ("two", REPLIES)):
        train(base, tmp_path / name, data, also=[], replies=[])
    asked = {"prompts": ["i am sad"] * 2 + ["why"], "completions": ["you feel sad", "it is hard", "you feel sad"]}

    def built(*names: str) -> list[Any]:
        return [
            build_scorer({"kind": "judge", "model": str(base), "weights": str(tmp_path / name)}, Context("cpu"))
            for name in names
        ]

    alone = [scorer(**asked) for name in ("one", "two") for scorer in built(name)]
    together.clear()
    assert [scorer(**asked) for scorer in built("one", "two")] == alone
    assert together == [2, 2, 1, 1], "two prompts, each beside another client's, for both judges"
    before = built("one")
    os.utime(base / "config.json", ns=(0, 0))
    (later,) = built("one")
    assert later.scorer.reader is not before[0].scorer.reader, "a model whose files were replaced is loaded again"


def test_a_network_learns_who_should_win_and_repeats_from_its_seed() -> None:
    torch.manual_seed(0)
    features = torch.randn(200, 6)
    worth = (features[:, 0].abs() + features[:, 1]).tolist()  # not linear
    contests = [
        Contest("levels", "made up", one, other)
        for one in range(200)
        for other in range(0, 200, 7)
        if worth[one] > worth[other]
    ]
    fit = Fit(dropout=0.0, epochs=30, learning_rate=1e-2, weight_decay=0.0)
    before = torch.get_rng_state()
    head, again = (fit_head(features, contests, [1.0] * len(contests), seed=1, fit=fit) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(head.inner, again.inner)
    (share, count) = won(outputs_of(head, features), contests)["levels", "made up"]
    assert share > 0.95
    assert count == len(contests)


def test_kinds_of_contests_weigh_the_same_however_many_there_are() -> None:
    sets = [parts_of(each, 0)["train"] for each in (graded(), dialogues(), REPLIES)]
    lessons = Lessons(sets, sets, 2, Sizes(), 0)
    held: dict[tuple[str, str], float] = {}
    for contest, weight in zip(lessons.contests, lessons.weights(), strict=True):
        spoilt = contest.row.startswith("own over ") and "another" not in contest.row
        kind = ("spoilt" if spoilt else contest.row, contest.data)
        held[kind] = held.get(kind, 0.0) + weight
    for data in ("graded", "dialogues"):
        assert held["levels", data] == pytest.approx(1.5)
        assert held["spoilt", data] == pytest.approx(2.0)
        assert held["human over the best constant", data] == pytest.approx(2.0)
    assert ("levels", "replies") not in held, "their levels are not learnt"
    assert held["spoilt", "replies"] == pytest.approx(2.0)


def test_constants_that_fool_the_network_get_more_weight() -> None:
    sets = [parts_of(each, 0)["train"] for each in (graded(), REPLIES)]
    lessons = Lessons(sets, sets, 1, FEW, 0)
    texts = list(lessons.texts)
    better = {each.better for each in lessons.contests}
    constants = [each for each in lessons.contests if each.row == CONSTANT]
    fooling = next(each for each in constants if each.data == "graded" and each.worse not in better)
    name = texts[fooling.worse][1]
    outputs = [1.0 if text == name and at not in better else 0.0 for at, (_, text) in enumerate(texts)]
    even, moved = lessons.weights(), lessons.weights(outputs)
    for each, before, after in zip(lessons.contests, even, moved, strict=True):
        if each.row != CONSTANT or each.data != "graded":
            assert after == pytest.approx(before)
        else:
            assert (after > before) == (texts[each.worse][1] == name)
    assert sum(moved) == pytest.approx(sum(even)), "a kind's weight stays"
    assert lessons.fooled(outputs)["graded"] == (1.0, 0.0)


# --- whole runs ------------------------------------------------------------------------------------------------------


def train(base: Path, out: Path, data: RecordSet | None = None, **options: Any) -> Trained:
    config = ScorerTraining(encoder=str(base), loss="states", device="cpu")
    values: dict[str, Any] = {
        "also": [dialogues()],
        "replies": [REPLIES],
        "exam": SHORT,
        "sizes": FEW,
        "fit": Fit(epochs=2),
    }
    return train_judge(config, data or graded(), out, **(values | options))


def test_replies_without_levels_make_a_judge_too(tmp_path: Path, base: Path) -> None:
    trained = train(base, tmp_path / "judge", REPLIES, also=[], replies=[])
    assert [each["graded"] for each in trained.report["data"]] == [False]
    assert {row["data"] for row in trained.report["exam"]["rows"]} == {"replies"}
    assert not any("level" in name for name in trained.report["validation"])


class PulledPlug(Exception):
    pass


def test_a_judge_is_trained_examined_and_used_from_its_folder(tmp_path: Path, base: Path) -> None:
    trained = train(base, tmp_path / "judge")
    assert [set(each) for each in trained.report["fooled"]] == [{"graded", "dialogues", "replies"}] * 2
    assert {row["data"] for row in trained.report["exam"]["rows"]} == {"graded", "dialogues", "replies"}
    assert not (tmp_path / ".judge.partial").exists()
    scorer = build_scorer({"kind": "judge", "model": str(base), "weights": str(trained.folder)}, Context(device="cpu"))
    scores = scorer(["i am sad"] * 3, ["you are sad", "why", " "])
    assert all(0.0 < score < 1.0 for score in scores[:2])
    assert scores[0] != scores[1]
    assert scores[2] == 0.0
    assert "human over the best constant" in (trained.folder / "README.md").read_text()
    for path in trained.folder.iterdir():
        assert b"I worry about my" not in path.read_bytes(), "no text of the data travels with the judge"
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_judge_interrupted_while_it_read_goes_on_to_the_same_network(tmp_path: Path, base: Path) -> None:
    whole = train(base, tmp_path / "whole")
    told: list[int] = []

    def pull(done: int, total: int, loss: float) -> None:
        told.append(done)
        if len(told) == 2:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        train(base, tmp_path / "resumed", progress=pull)
    for path in (tmp_path / ".resumed.partial").iterdir():
        assert b"I worry about my" not in path.read_bytes()
    with pytest.raises(ScorerError, match="interrupted run"):
        train(base, tmp_path / "resumed")
    resumed = train(base, tmp_path / "resumed", resume=True)
    assert json.dumps(resumed.report) == json.dumps(whole.report)
    one, other = (load_file(folder / "judge.safetensors") for folder in (whole.folder, resumed.folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_readings_of_another_model_are_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(PulledPlug):
        train(base, tmp_path / "judge", progress=_pull)
    with pytest.raises(ScorerError, match="had another model"):
        train(scorer_models.causal(tmp_path / "other"), tmp_path / "judge", resume=True)


def _pull(done: int, total: int, loss: float) -> None:
    raise PulledPlug


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        ({}, "judge.json", "has no judge.json"),
        ({}, "judge.safetensors", "has no judge.safetensors"),
        ({}, "calibration.json", "has no calibration"),
        ({"outer": None}, "", "tensors must be inner, inner_bias"),
        ({"outer": torch.zeros(3)}, "", r"outer is \[3\] beside inner"),
        ({"inner": torch.zeros(4, 9), "mean": torch.zeros(9), "spread": torch.ones(9)}, "", "with 9 features"),
    ],
)
def test_weights_that_are_none_are_refused(
    tmp_path: Path, base: Path, changes: dict[str, Any], missing: str, message: str
) -> None:
    folder = scorer_models.judge(tmp_path / "weights", **changes)
    if missing:
        (folder / missing).unlink()
    with pytest.raises(ScorerError, match=message):
        build_scorer({"kind": "judge", "model": str(base), "weights": str(folder)}, Context(device="cpu"))
