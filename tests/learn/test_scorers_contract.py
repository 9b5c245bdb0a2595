"""What holds for every scorer: the signature, the range, the checks, determinism, and how one is named."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emorl_core.scorers import SCORERS, Context, Scorer, ScorerError, build_scorer, checked, parse_scorer
from emorl_core.scorers.base import name_of
from tests.learn import scorer_models
from training.data.records import Record

PROMPTS = [
    "I feel sad because my boss is never home.",
    "I am tired, and I can not sleep when I am alone.",
    "My mother and my doctor want me to try.",
    "I drink.",
    "I feel sad because my boss is never home.",
    "",
]
COMPLETIONS = [
    "You feel sad because your boss is never home.",
    "It sounds like you are tired.",
    "Why do you not go to work?",
    "",
    "It is hard. It makes sense that you feel sad when your boss is not at home, and it is not easy at all for you.",
    "You are tired and you are tired and you are tired.",
]


def specs(folder: Path) -> dict[str, dict[str, Any]]:
    """One working configuration per kind."""
    return {
        "cross_encoder": {"model": str(scorer_models.classifier(folder / "one", ["quality"]))},
        "perplexity": {"model": str(scorer_models.causal(folder / "gpt"))},
        "coherence": {
            "model": str(scorer_models.classifier(folder / "nli", ["entailment", "neutral", "contradiction"]))
        },
        "specificity": {"model": str(scorer_models.encoder(folder / "encoder"))},
        "fluency": {"model": str(scorer_models.causal(folder / "base")), "weights": str(fluency_weights(folder))},
        "judge": {
            "model": str(scorer_models.causal(folder / "states")),
            "weights": str(scorer_models.judge(folder / "w")),
        },
        "contrast": {"of": "diversity"},
        "callable": {"path": "tests.learn.own_scorers:share_of_letters"},
        "product": {"of": ["length", {"kind": "repetition", "ngram": 2}]},
    }


def fluency_weights(folder: Path) -> Path:
    weights = {"below": 0.1, "above": 0.1, "over_free": 0.3, "over_others": 0.3, "end": 0.1}
    (folder / "fluency.json").write_text(json.dumps({"centre": -3.0, "weights": weights, "intercept": 0.5}))
    return folder


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    special = specs(tmp_path_factory.mktemp("models"))
    made = {}
    for kind in SCORERS:
        corpus = [Record(prompt) for prompt in PROMPTS if prompt] if kind == "contrast" else []
        made[kind] = build_scorer({"kind": kind, **special.get(kind, {})}, Context(device="cpu", corpus=corpus))
    return made


@pytest.mark.parametrize("kind", SCORERS)
def test_every_scorer_keeps_trls_contract(scorers: dict[str, Scorer], kind: str) -> None:
    scorer = scorers[kind]
    assert isinstance(scorer, Scorer)
    assert scorer.__name__, "TRL logs rewards under `__name__`"
    # TRL calls by keyword and hands over every column of the data.
    scores = scorer(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 6, topic=["x"] * 6)
    assert len(scores) == 6
    assert all(type(score) is float and 0.0 <= score <= 1.0 for score in scores)
    assert len({round(score, 6) for score in scores}) > 1, "a constant would pass every other check"


@pytest.mark.parametrize("kind", SCORERS)
def test_a_pair_scores_the_same_alone_in_any_batch_and_again(scorers: dict[str, Scorer], kind: str) -> None:
    scorer = scorers[kind]
    together = scorer(PROMPTS, COMPLETIONS)
    assert scorer(PROMPTS, COMPLETIONS) == together
    alone = [scorer([prompt], [reply])[0] for prompt, reply in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert alone == pytest.approx(together, abs=1e-6)
    turned = scorer(PROMPTS[::-1], COMPLETIONS[::-1])
    assert turned[::-1] == pytest.approx(together, abs=1e-6)


@pytest.mark.parametrize("kind", SCORERS)
def test_nothing_gives_nothing(scorers: dict[str, Scorer], kind: str) -> None:
    assert scorers[kind]([], []) == []


@pytest.mark.parametrize("kind", SCORERS)
def test_an_empty_reply_never_beats_all_others(scorers: dict[str, Scorer], kind: str) -> None:
    if kind in ("cross_encoder", "coherence", "edit_rate", "callable"):
        pytest.skip("a random classifier and a distance have no opinion about saying nothing")
    score, *_ = scorers[kind]([PROMPTS[0]], [""])
    assert score == 0.0


@pytest.mark.parametrize("kind", ["cross_encoder", "perplexity", "judge", "fluency", "coherence", "specificity"])
def test_building_and_calling_leave_the_random_state_alone(tmp_path: Path, kind: str) -> None:
    """A resumed run must see the numbers that the uninterrupted one saw."""
    spec = {"kind": kind, **specs(tmp_path)[kind]}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_scorer(spec, Context(device="cpu"))(PROMPTS, COMPLETIONS)
    assert torch.equal(torch.get_rng_state(), before)


def scorer_that_returns(answer: Any) -> Scorer:
    def broken(prompts: list[str], completions: list[str], **kwargs: Any) -> Any:
        return answer

    return checked(broken)


@pytest.mark.parametrize(
    ("answer", "message", "index"),
    [
        ([0.5], "returned 1 scores for 2 completions", None),
        ([0.5, 0.5, 0.5], "returned 3 scores for 2 completions", None),
        (None, "returned a NoneType; allowed: a list of floats", None),
        (torch.tensor([0.5, 0.5]), "returned a Tensor; allowed: a list of floats", None),
        ([0.5, math.nan], "returned NaN at index 1; allowed: 0 to 1", 1),
        ([math.inf, 0.5], "returned inf at index 0; allowed: 0 to 1", 0),
        ([0.5, -0.01], r"returned -0\.01 at index 1", 1),
        ([1.0001, 0.5], r"returned 1\.0001 at index 0", 0),
        (["0.5", 0.5], "returned a str at index 0; allowed: a float", 0),
        ([0.5, None], "returned a NoneType at index 1", 1),
        ([True, 0.5], "returned a bool at index 0", 0),
        ([0.5, torch.tensor(0.5)], "returned a Tensor at index 1", 1),
    ],
)
def test_a_broken_answer_is_refused_at_the_first_call(answer: Any, message: str, index: int | None) -> None:
    with pytest.raises(ScorerError, match=rf"^scorer 'broken' {message}") as caught:
        scorer_that_returns(answer)(["a", "b"], ["c", "d"])
    assert (caught.value.scorer, caught.value.index) == ("broken", index)


def test_numbers_of_numpy_and_whole_numbers_are_taken_as_floats() -> None:
    scores = scorer_that_returns([np.float32(0.5), 1])(["a", "b"], ["c", "d"])
    assert scores == [0.5, 1.0]
    assert [type(score) for score in scores] == [float, float]


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["a"], ["b", "c"], "got 1 prompts and 2 completions"),
        ([["a"]], ["b"], "prompt 0 is a list; allowed: a string"),
        (["a"], [{"content": "b"}], "completion 0 is a dict; allowed: a string"),
    ],
)
def test_texts_that_are_none_are_refused(prompts: Any, completions: Any, message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        scorer_that_returns([0.5])(prompts, completions)


def test_checking_twice_is_checking_once() -> None:
    once = scorer_that_returns([0.5])
    assert checked(once) is once
    assert name_of(once) == "broken"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cross_encode", r"^scorer\.kind is 'cross_encode' \(did you mean 'cross_encoder'\?\); known kinds: "),
        (
            {"kind": "perplexity", "modle": "x"},
            r"^scorer\.modle is unknown \(did you mean 'model'\?\); known keys: model",
        ),
        ({"kind": "perplexity"}, r"^scorer\.model is missing"),
        ({"kind": "perplexity", "model": "x", "mapping": "root"}, r"^scorer\.mapping is 'root': Input should be 'log'"),
        ({"kind": "perplexity", "model": "x", "worst": 1}, r"^scorer\.worst is 1: Input should be greater than 1"),
        ({"kind": "length", "min_words": 9, "max_words": 3}, r"min_words is above max_words"),
        ({"kind": "lexical_fluency", "min_words": 9, "max_words": 3}, r"min_words is above max_words"),
        ({"kind": "product", "of": ["length"]}, r"^scorer\.of is "),
        ({}, r"^scorer\.kind is missing"),
        (7, r"^scorer is a int; allowed: a kind's name or a mapping with it"),
        ({"kind": "callable", "path": "no_dots"}, r"write it as package\.module:function"),
    ],
)
def test_a_scorer_that_is_named_wrongly_is_one_line(spec: Any, message: str) -> None:
    with pytest.raises(ScorerError, match=message) as caught:
        parse_scorer(spec)
    assert "\n" not in caught.value.message


def test_where_a_spec_stands_is_part_of_its_message() -> None:
    with pytest.raises(ScorerError, match=r"^objectives\.empathy\.scorer\.kind is 'x'"):
        build_scorer("x", where="objectives.empathy.scorer")
    with pytest.raises(ScorerError, match=r"^scorer\.of\.1\.kind is 'lenght' \(did you mean 'length'\?\)"):
        build_scorer({"kind": "product", "of": ["length", "lenght"]})


def test_every_kind_says_its_own_name_and_what_it_does() -> None:
    for kind, config in SCORERS.items():
        assert config.model_fields["kind"].default == kind
        assert config.__doc__
        assert "kwargs" in str(inspect.signature(checked(lambda **kwargs: []).__call__))


def test_every_scorer_and_its_settings_are_in_the_docs() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "scorers.md").read_text(encoding="utf-8")
    for kind, config in SCORERS.items():
        assert re.search(rf"^### `{kind}`", page, re.MULTILINE), kind
        section = page.split(f"### `{kind}`")[1].split("\n##")[0]
        for name in config.model_fields:
            assert name == "kind" or f"`{name}`" in section, f"{kind}.{name}"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cross_encoder", "perplexity", "fluency", "coherence", "specificity"])
def test_a_gpu_gives_the_scores_of_the_cpu(tmp_path: Path, kind: str) -> None:
    spec = {"kind": kind, **specs(tmp_path)[kind]}
    cpu = build_scorer(spec, Context(device="cpu"))(PROMPTS, COMPLETIONS)
    assert build_scorer(spec, Context(device="cuda"))(PROMPTS, COMPLETIONS) == pytest.approx(cpu, abs=1e-3)
