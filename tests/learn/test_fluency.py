"""Fluency: likelihoods of a reply here, without a prompt and under others, and the weights fitted on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.scorers import Context, ScorerError, build_scorer
from emorl_core.scorers.fluency import OTHERS, FluencyWeights, Likelihood, LikelihoodReader
from tests.learn import scorer_models
from tests.learn.test_exam import graded
from training.scorers.exam.examine import ExamSettings
from training.scorers.learned.fluency import fit_weights, train_fluency
from training.scorers.learned.settings import ScorerTraining

SHORT = ExamSettings(replies=3, graded=8, candidates=4, prompts=2)


@pytest.fixture
def reader(tmp_path: Path) -> LikelihoodReader:
    where = scorer_models.causal(tmp_path / "base")
    return LikelihoodReader(str(where), None, device="cpu", dtype="float32", batch_size=2)


def slowly(reader: LikelihoodReader, prompt: str, reply: str) -> tuple[float, float]:
    """One text, one pass, token by token."""
    words = reader.passes.tokenizer(reply, add_special_tokens=False)["input_ids"]
    context = [
        reader.passes.tokenizer.bos_token_id,
        *reader.passes.tokenizer(f"{prompt}\n", add_special_tokens=False)["input_ids"],
    ]
    context = context[
        -(reader.passes.max_length - reader.passes.max_length // 2 - 1) :
    ]  # the base of this test has 64 positions
    ids = torch.tensor([[*context, *words, reader.passes.tokenizer.eos_token_id]])
    with torch.inference_mode():
        logs = reader.passes.model(input_ids=ids).logits[0].log_softmax(-1)
    each = [float(logs[place - 1, ids[0, place]]) for place in range(len(context), ids.shape[1])]
    return sum(each[:-1]) / len(words), each[-1]


def test_likelihoods_are_those_of_single_passes(reader: LikelihoodReader) -> None:
    pairs = [("i am sad", "you feel sad and alone"), ("we want a new home", "why"), ("drink", "you try to sleep")]
    found = reader.read([prompt for prompt, _ in pairs], [reply for _, reply in pairs])
    for (prompt, reply), own in zip(pairs, found, strict=True):
        given, end = slowly(reader, prompt, reply)
        others = [slowly(reader, other, reply)[0] for other in OTHERS]
        assert own.given == pytest.approx(given, abs=1e-4)
        assert own.end == pytest.approx(end, abs=1e-4)
        assert own.free == pytest.approx(slowly(reader, "", reply)[0], abs=1e-4)
        assert own.others == pytest.approx(sum(others) / len(others), abs=1e-4)


def test_nothing_said_is_not_fluent(reader: LikelihoodReader) -> None:
    (own,) = reader.read(["i am sad"], ["  "])
    assert own.given == -math.inf
    weights = FluencyWeights(centre=-2.0, weights=dict.fromkeys(own.features(0.0), 1.0), intercept=5.0)
    assert weights.score(own) == 0.0


def test_what_is_likely_everywhere_counts_less_and_too_likely_is_suspect() -> None:
    human = [Likelihood(-2.0 - n / 100, -3.0, -3.5, -0.5) for n in range(20)]
    stock = [Likelihood(-1.9, -2.0, -1.9, -0.5) for _ in human]
    stammer = [Likelihood(-0.3, -1.3, -1.8, -0.5) for _ in human]
    garbled = [Likelihood(-6.0, -7.0, -7.5, -0.5) for _ in human]
    cut = [Likelihood(-2.0, -3.0, -3.5, -7.0) for _ in human]
    weights = fit_weights(
        [(own, worse) for kind in (stock, stammer, garbled, cut) for own, worse in zip(human, kind, strict=True)]
    )
    good = weights.score(human[3])
    for spoilt in (stock, stammer, garbled, cut):
        assert weights.score(spoilt[0]) < 0.5 < good


def test_it_is_fitted_examined_and_used_from_its_folder(tmp_path: Path) -> None:
    base = scorer_models.causal(tmp_path / "base")
    config = ScorerTraining(encoder=str(base), loss="fluency", device="cpu")
    told: list[tuple[int, int]] = []
    trained = train_fluency(
        config,
        [graded()],
        tmp_path / "fluency",
        exam=SHORT,
        progress=lambda done, total, loss: told.append((done, total)),
    )
    assert told[-1][0] == told[-1][1] > 0
    assert {row["data"] for row in trained.report["exam"]["rows"]} == {"graded"}
    spec = {"kind": "fluency", "model": str(base), "weights": str(trained.folder)}
    scores = build_scorer(spec, Context(device="cpu"))(["i am sad", "i am sad"], ["you feel sad", ""])
    assert 0.0 < scores[0] < 1.0
    assert scores[1] == 0.0
    assert str(tmp_path) not in "".join(path.read_text() for path in trained.folder.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no fluency.json"),
        ("{", "fluency.json"),
        (json.dumps({"centre": -2, "weights": {"end": 1.0}, "intercept": 0.0}), "weights must be below, above"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    base = scorer_models.causal(tmp_path / "base")
    (tmp_path / "w").mkdir()
    if content is not None:
        (tmp_path / "w" / "fluency.json").write_text(content)
    spec: dict[str, Any] = {"kind": "fluency", "model": str(base), "weights": str(tmp_path / "w")}
    with pytest.raises(ScorerError, match=message):
        build_scorer(spec, Context(device="cpu"))
