"""Training a scorer: it learns, repeats, resumes to the same bits, never overwrites, and scores as it reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emorl_core.scorers import Context, ScorerError, build_scorer
from tests.learn import scorer_models
from tests.learn.real_data import real
from tests.modes import closed_files
from training.data.clusters import split_by_cluster
from training.data.records import DataError, Record, RecordSet
from training.data.sources import load_records
from training.scorers.learned.metrics import ranking_accuracy
from training.scorers.learned.settings import ScorerTraining
from training.scorers.learned.train import train_scorer

THINGS = ("work", "boss", "sleep", "drink", "doctor", "mother", "home")
FEELINGS = ("sad", "angry", "tired", "alone")


def graded(prompts: int = 40) -> RecordSet:
    """High: names the client's thing. Low: a question or advice."""
    records = []
    for number in range(prompts):
        thing, feeling = THINGS[number % 7], FEELINGS[number % 4]
        prompt = f"I am {feeling} {'and alone ' * (number // 28)}because of my {thing}."
        replies = ((f"You are {feeling} because of your {thing}.", 2.0), (f"You are {feeling}.", 1.0))
        replies += ((f"Why not go to the {thing}?", 0.0), ("You should try.", 0.0))
        records += [Record(prompt, reply, level, where=f"g:{number}") for reply, level in replies]
    return RecordSet("graded", tuple(records), len(records), sha256="0" * 64)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return scorer_models.encoder(tmp_path / "encoder")


def settings(folder: Path, **changes: Any) -> ScorerTraining:
    values = {"encoder": str(folder), "loss": "margin", "epochs": 2, "learning_rate": 3e-3, "max_length": 48}
    values |= {"freeze_embeddings": False, "device": "cpu"}
    return ScorerTraining(**values | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_margin_scorer_learns_to_rank_and_is_what_its_report_says(tmp_path: Path, encoder: Path) -> None:
    data = graded()
    trained = train_scorer(settings(encoder, epochs=6, batch_size=12), data, tmp_path / "scorer")
    test = trained.report["test"]
    assert test["high_over_low"] >= 0.9
    assert test["brier"] < test["brier_constant"]
    # The folder, loaded as a recipe would load it, gives the reported figure on the very same prompts.
    scorer = build_scorer({"kind": "cross_encoder", "model": str(trained.folder)}, Context(device="cpu"))
    held_out = split_by_cluster(data.records, seed=0)["test"]
    scores = scorer([record.prompt for record in held_out], [str(record.response) for record in held_out])
    levels, groups = [record.level or 0.0 for record in held_out], [record.prompt for record in held_out]
    assert ranking_accuracy(scores, levels, groups, better=2.0, worse=0.0) == (
        test["high_over_low"],
        test["high_over_low_pairs"],
    )


def test_a_classes_scorer_reports_macro_f1_beside_the_majoritys(tmp_path: Path, encoder: Path) -> None:
    trained = train_scorer(
        settings(encoder, loss="classes", epochs=4, batch_size=8, learning_rate=1e-2), graded(), tmp_path / "scorer"
    )
    test = trained.report["test"]
    assert test["macro_f1"] > test["macro_f1_majority"] + 0.2
    assert len(test["f1_by_level"]) == 3
    calibration = json.loads((trained.folder / "calibration.json").read_text())
    assert (calibration["kind"], calibration["values"]) == ("temperature", [0.0, 0.5, 1.0])
    labels = json.loads((trained.folder / "config.json").read_text())["id2label"]
    assert list(labels.values()) == ["level 0", "level 1", "level 2"]


def test_runs_repeat_from_their_seed_and_leave_the_random_state_alone(tmp_path: Path, encoder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train_scorer(settings(encoder), graded(), tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    train_scorer(settings(encoder), graded(), tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "training.json").read_bytes() == (tmp_path / "b" / "training.json").read_bytes()
    train_scorer(settings(encoder, seed=1), graded(), tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "c")


class PulledPlug(Exception):
    pass


def interrupt_in(epoch: int) -> Any:
    def progress(done: int, total: int, loss: float) -> None:
        if done > epoch * total // 3 + 1:
            raise PulledPlug

    return progress


@pytest.mark.parametrize("loss", ["margin", "classes"])
def test_a_run_interrupted_after_an_epoch_resumes_to_the_same_bits(tmp_path: Path, encoder: Path, loss: str) -> None:
    config = settings(encoder, loss=loss, epochs=3)
    whole = train_scorer(config, graded(), tmp_path / "whole")
    out = tmp_path / "resumed"
    for epoch in (1, 2):
        with pytest.raises(PulledPlug):
            train_scorer(config, graded(), out, resume=epoch == 2, progress=interrupt_in(epoch))
        assert not out.exists(), "a half-made scorer is never in its place"
    with pytest.raises(ScorerError, match="an interrupted run of 'resumed' is there"):
        train_scorer(config, graded(), out)
    resumed = train_scorer(config, graded(), out, resume=True)
    assert same(tmp_path / "whole", out)
    assert resumed.report == whole.report
    assert not (tmp_path / ".resumed.partial").exists()


def test_resuming_with_other_settings_or_nothing_to_resume_is_refused(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(ScorerError, match="there is no interrupted run of 'out'"):
        train_scorer(settings(encoder), graded(), tmp_path / "out", resume=True)
    with pytest.raises(PulledPlug):
        train_scorer(settings(encoder, epochs=3), graded(), tmp_path / "out", progress=interrupt_in(1))
    for config, data in ((settings(encoder, epochs=4), graded()), (settings(encoder, epochs=3), graded(39))):
        with pytest.raises(ScorerError, match="the interrupted run had other data or settings"):
            train_scorer(config, data, tmp_path / "out", resume=True)
    train_scorer(settings(encoder, epochs=1), graded(), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path, encoder: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(ScorerError, match="'out' already holds something; overwrite replaces it"):
        train_scorer(settings(encoder), graded(), out)
    with pytest.raises(PulledPlug):
        train_scorer(settings(encoder, epochs=3), graded(), out, overwrite=True, progress=interrupt_in(1))
    assert (out / "mine.txt").read_text() == "kept", "until the new one is done"
    train_scorer(settings(encoder, epochs=1), graded(), out, overwrite=True)
    assert not (out / "mine.txt").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ScorerError, match="'file' is a file; name a folder"):
        train_scorer(settings(encoder), graded(), tmp_path / "file", overwrite=True)


def test_the_folder_is_a_hugging_face_model_with_a_card_and_no_path_of_this_machine(
    tmp_path: Path, encoder: Path
) -> None:
    data = graded()
    folder = train_scorer(settings(encoder, epochs=1), data, tmp_path / "scorer").folder
    assert closed_files(folder) == []
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "calibration.json",
        "training.json",
        "README.md",
    }
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: transformers" in card
    for figure in ("high_over_low", "ranking_accuracy", "ece", "brier", data.sha256, "seed 0"):
        assert figure in card
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        assert data.records[0].prompt.encode() not in path.read_bytes(), "no text of the data travels with the model"


def test_frozen_parts_keep_their_weights_and_the_others_move(tmp_path: Path, encoder: Path) -> None:
    config = settings(encoder, epochs=1, freeze_embeddings=True, freeze_layers=1)
    after = weights(train_scorer(config, graded(), tmp_path / "scorer").folder)
    before = {f"bert.{name}": tensor for name, tensor in weights(encoder).items()}
    frozen = [name for name in before if "embeddings" in name or "layer.0." in name]
    moved = [name for name in before if "layer.1." in name and name.endswith("weight")]
    assert frozen
    assert moved
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in moved)


def with_records(*records: Record) -> RecordSet:
    return RecordSet("d", records, len(records))


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        (with_records(*(Record(f"p {n}", "r", where=f"d:{n}") for n in range(30))), "margin", r"d:\d+: no level"),
        (with_records(*(Record(f"p {n}", where=f"d:{n}") for n in range(30))), "classes", r"d:\d+: no response"),
        (
            with_records(*(Record(f"p {n}", "r", float(n % 2)) for n in range(30))),
            "margin",
            "no prompt has replies of two",
        ),
        (with_records(*(Record(f"p {n}", "r", 1.0) for n in range(30))), "classes", "all replies have one level"),
        (with_records(*(Record(f"p {n}", "r", n / 7) for n in range(300))), "classes", "takes 2 to 20 levels"),
        (
            with_records(Record("p", "a", 1.0), Record("p", "b", 0.0)),
            "margin",
            "1 distinct prompts cannot fill 3 parts",
        ),
    ],
)
def test_data_that_cannot_train_a_scorer_is_refused_before_anything_is_written(
    tmp_path: Path, encoder: Path, data: RecordSet, loss: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        train_scorer(settings(encoder, loss=loss), data, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"encoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "./nowhere"}, "'./nowhere' is not a folder"),
        ({"max_length": 65}, "max_length is 65; 'encoder' reads at most 64 tokens"),
        ({"freeze_layers": 2}, "freeze_layers is 2; the encoder has 2 layers and the highest must stay free"),
        ({"learning_rate": 1e30}, r"the loss is not finite in epoch 1, step \d+; lower learning_rate \(1e\+30\)"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, encoder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScorerError, match=message):
        train_scorer(settings(encoder, **changes), graded(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_lacks_layers_is_refused(tmp_path: Path, encoder: Path) -> None:
    config = json.loads((encoder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScorerError, match=r"encoder 'encoder': the checkpoint lacks bert\.encoder\.layer\.2"):
        train_scorer(settings(encoder), graded(), tmp_path / "out")


def test_a_trained_classifier_may_be_the_encoder_of_another(tmp_path: Path, encoder: Path) -> None:
    first = train_scorer(settings(encoder, epochs=1, loss="classes"), graded(), tmp_path / "classes").folder
    second = train_scorer(settings(first, epochs=1), graded(), tmp_path / "margin")
    assert weights(second.folder)["classifier.weight"].shape[0] == 1


@pytest.mark.slow
def test_real_pair_levels_can_be_learnt_from(tmp_path: Path, encoder: Path) -> None:
    """A tiny random encoder on the real file: far from good, but the whole line runs and beats chance."""
    data = load_records({"kind": "pair", "path": str(real("pair/pair.csv")), "view": "graded"})
    trained = train_scorer(settings(encoder, epochs=1, max_length=48), data, tmp_path / "scorer")
    assert sum(trained.report["pairs"].values()) == 2048
    assert trained.report["test"]["high_over_low"] > 0.6
    assert re.fullmatch(r"[0-9a-f]{64}", trained.report["data"][0]["sha256"])
