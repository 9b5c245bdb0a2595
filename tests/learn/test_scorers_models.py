"""Scorers with a model inside, each against a plain loop over Hugging Face's own classes, one text at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from emorl_core.scorers import Context, ScorerError, build_scorer
from emorl_core.scorers.calibration import Isotonic, Platt, Temperature, write_calibration
from tests.learn import scorer_models

CPU = Context(device="cpu")
PROMPTS = [
    "I feel sad because my boss is never home.",
    "I am tired.",
    "My mother wants me to try and try and try again.",
]
REPLIES = ["You feel sad.", "It sounds like you are tired and want to sleep.", "Why not go?"]


def by_hand(folder: Path) -> torch.Tensor:
    """[3, outputs], one pair at a time, through transformers alone."""
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat(
            [model(**words(p, r, return_tensors="pt")).logits for p, r in zip(PROMPTS, REPLIES, strict=True)]
        )


def score(spec: dict[str, Any]) -> list[float]:
    return build_scorer(spec, CPU)(PROMPTS, REPLIES)


def cross(folder: Path, **settings: Any) -> list[float]:
    return score({"kind": "cross_encoder", "model": str(folder), **settings})


def test_one_logit_equals_transformers_own(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    logits = by_hand(folder)[:, 0]
    assert cross(folder) == pytest.approx(torch.sigmoid(logits).tolist(), abs=1e-6)
    assert cross(folder, output="clamp") == pytest.approx(logits.clamp(0, 1).tolist(), abs=1e-6)
    assert cross(folder, batch_size=1) == pytest.approx(cross(folder), abs=1e-6)


def test_classes_equal_transformers_own(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["bad", "fair", "good"])
    likely = by_hand(folder).softmax(-1)
    assert cross(folder, output="expected") == pytest.approx(
        (likely @ torch.tensor([0.0, 0.5, 1.0])).tolist(), abs=1e-6
    )
    assert cross(folder, label="fair") == pytest.approx(likely[:, 1].tolist(), abs=1e-6)
    two = scorer_models.classifier(tmp_path / "two", ["no", "yes"])
    assert cross(two) == pytest.approx(by_hand(two).softmax(-1)[:, 1].tolist(), abs=1e-6)


def test_a_calibration_beside_the_model_is_used_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    logits = by_hand(folder)[:, 0]
    write_calibration(folder, Platt(slope=0.5, intercept=-1.0))
    expected = torch.sigmoid(0.5 * logits - 1).tolist()
    assert cross(folder) == pytest.approx(expected, abs=1e-6)
    assert cross(folder, output="calibrated") == pytest.approx(expected, abs=1e-6)
    assert cross(folder, output="sigmoid") == pytest.approx(torch.sigmoid(logits).tolist(), abs=1e-6)
    low, high = float(logits.min()) - 1, float(logits.max()) + 1
    write_calibration(folder, Isotonic(inputs=(low, high), outputs=(0.2, 0.8)))
    assert cross(folder) == pytest.approx((0.2 + 0.6 * (logits - low) / (high - low)).tolist(), abs=1e-6)


def test_a_temperature_is_applied_to_class_logits(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["0", "1", "2"])
    write_calibration(folder, Temperature(temperature=2.5, values=(0.0, 0.5, 1.0)))
    likely = (by_hand(folder) / 2.5).softmax(-1)
    assert cross(folder) == pytest.approx((likely @ torch.tensor([0.0, 0.5, 1.0])).tolist(), abs=1e-6)


def test_long_texts_are_cut_the_longer_one_first(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    scorer = build_scorer({"kind": "cross_encoder", "model": str(folder), "max_length": 24}, CPU)
    tail = "home " * 300
    assert scorer(["I feel sad " + tail], ["You"]) == scorer(["I feel sad " + tail + "boss"], ["You"])
    assert scorer(["I feel sad " + tail], ["You"]) != scorer(["I feel sad " + tail], ["alone"]), "the reply survives"


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (["a", "b", "c"], {}, r"has 3 classes and no calibration: name a label \(a, b, c\)"),
        (["a", "b"], {"label": "c"}, "label 'c' is not one of .*: a, b"),
        (["q"], {"label": "q"}, "label is given, but .* has a single output"),
        (["a", "b"], {"label": "a", "output": "expected"}, "exclude each other"),
        (["a", "b"], {"output": "clamp"}, r"output: clamp does not fit .* 2 output\(s\)"),
        (["q"], {"output": "expected"}, "output: expected does not fit"),
        (["q"], {"output": "calibrated"}, r"has no calibration\.json"),
        (["q"], {"max_length": 65}, r"max_length is 65; .* reads at most 64 tokens"),
    ],
)
def test_a_classifier_that_does_not_fit_its_settings_is_refused(
    tmp_path: Path, labels: list[str], settings: dict[str, Any], message: str
) -> None:
    folder = scorer_models.classifier(tmp_path / "m", labels)
    with pytest.raises(ScorerError, match=message):
        cross(folder, **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "platt", "slope": 1}', r"calibration\.json: platt\.intercept: Field required"),
        ('{"kind": "plat"}', r"calibration\.json: "),
        ("{", r"calibration\.json: file: Invalid JSON"),
        ('{"kind": "platt", "slope": NaN, "intercept": 0}', r"calibration\.json: "),
        ('{"kind": "temperature", "temperature": 0, "values": [0, 1]}', "greater than 0"),
        ('{"kind": "isotonic", "inputs": [1, 0], "outputs": [0, 1]}', "must not decrease"),
        ('{"kind": "isotonic", "inputs": [0, 1], "outputs": [0]}', "differ in length"),
        (
            '{"kind": "temperature", "temperature": 1, "values": [0, 1]}',
            r"has 1 output\(s\); its calibration\.json is for 2",
        ),
    ],
)
def test_a_calibration_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    (folder / "calibration.json").write_text(content)
    with pytest.raises(ScorerError, match=message):
        cross(folder)


@pytest.mark.parametrize("kind", ["cross_encoder", "coherence", "perplexity"])
def test_a_checkpoint_without_a_trained_head_is_refused(tmp_path: Path, kind: str) -> None:
    """The published coherence scorer had an untrained head; its scores were noise."""
    if kind == "perplexity":
        folder = scorer_models.causal(tmp_path / "m")
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        folder = scorer_models.encoder(tmp_path / "m")
    with pytest.raises(ScorerError, match=r"model '.*' has no trained head: the checkpoint lacks (classifier|lm_head)"):
        score({"kind": kind, "model": str(folder)})


def test_an_encoder_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    folder = scorer_models.encoder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScorerError, match=r"has no trained encoder: the checkpoint lacks encoder\.layer\.2"):
        score({"kind": "specificity", "model": str(folder)})


@pytest.mark.parametrize("kind", ["cross_encoder", "coherence", "perplexity", "specificity"])
@pytest.mark.parametrize("model", ["./nowhere", "a/b/c", "~/nowhere", ""])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(kind: str, model: str) -> None:
    with pytest.raises(ScorerError, match="is not a folder" if model else "model is empty"):
        score({"kind": kind, "model": model})


def test_a_folder_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for kind in ("cross_encoder", "coherence", "perplexity", "specificity"):
        with pytest.raises(ScorerError, match="cannot be loaded") as caught:
            score({"kind": kind, "model": str(tmp_path / "empty")})
        assert "\n" not in caught.value.message


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ScorerError, match="cannot be loaded"):
        cross(folder)


def test_relative_folders_start_at_the_recipes_folder(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    named = build_scorer({"kind": "cross_encoder", "model": "m"}, Context(device="cpu", base=tmp_path))
    assert named(PROMPTS, REPLIES) == cross(folder)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "m", ["quality"])
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ScorerError, match=f"device '{device}' is not here; allowed: auto, cpu"):
            build_scorer({"kind": "cross_encoder", "model": str(folder)}, Context(device=device))


def test_coherence_is_what_the_classifier_does_not_contradict(tmp_path: Path) -> None:
    folder = scorer_models.classifier(tmp_path / "nli", ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])
    likely = by_hand(folder).softmax(-1)
    spec = {"kind": "coherence", "model": str(folder)}
    assert score(spec) == pytest.approx((1 - likely[:, 0]).tolist(), abs=1e-6)
    assert score(spec | {"score": "entailed"}) == pytest.approx(likely[:, 2].tolist(), abs=1e-6)


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["quality"], ["neutral", "entailment"]])
def test_coherence_refuses_a_classifier_that_is_not_for_inference(tmp_path: Path, labels: list[str]) -> None:
    folder = scorer_models.classifier(tmp_path / "m", labels)
    with pytest.raises(ScorerError):
        score({"kind": "coherence", "model": str(folder)})


def test_specificity_is_the_cosine_of_mean_pooled_states(tmp_path: Path) -> None:
    folder = scorer_models.encoder(tmp_path / "m", seed=3)
    words, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    cosines = [torch.cosine_similarity(vector(p), vector(r), dim=0) for p, r in zip(PROMPTS, REPLIES, strict=True)]
    expected = [max(0.0, float(cosine)) for cosine in cosines]
    assert score({"kind": "specificity", "model": str(folder)}) == pytest.approx(expected, abs=1e-5)
    copied = build_scorer({"kind": "specificity", "model": str(folder)}, CPU)(PROMPTS, PROMPTS)
    assert copied == pytest.approx([1.0] * 3, abs=1e-5)


def causal_by_hand(folder: Path, prompt: str, reply: str, scope: str) -> float:
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    given = [words.bos_token_id, *words(prompt + " ", add_special_tokens=False)["input_ids"]]
    said = words(reply, add_special_tokens=False)["input_ids"]
    labels = [-100] * len(given) + said if scope == "response" else [-100, *given[1:], *said]
    with torch.no_grad():
        return math.exp(float(model(torch.tensor([given + said]), labels=torch.tensor([labels])).loss))


@pytest.mark.parametrize("scope", ["response", "both"])
def test_causal_perplexity_equals_transformers_own_loss(tmp_path: Path, scope: str) -> None:
    folder = scorer_models.causal(tmp_path / "m")
    expected = [causal_by_hand(folder, p, r, scope) for p, r in zip(PROMPTS, REPLIES, strict=True)]
    scorer = build_scorer({"kind": "perplexity", "model": str(folder), "scope": scope}, CPU).scorer
    assert scorer.perplexities(PROMPTS, REPLIES) == pytest.approx(expected, rel=1e-4)
    linear = score({"kind": "perplexity", "model": str(folder), "scope": scope, "mapping": "linear", "worst": 200})
    assert linear == pytest.approx([max(0.0, (200 - ppl) / 200) for ppl in expected], abs=1e-4)
    logarithmic = score({"kind": "perplexity", "model": str(folder), "scope": scope})
    assert logarithmic == pytest.approx([max(0.0, 1 - math.log(ppl) / math.log(1000)) for ppl in expected], abs=1e-4)


def test_seq2seq_perplexity_equals_transformers_own_loss(tmp_path: Path) -> None:
    folder = scorer_models.seq2seq(tmp_path / "m")
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    expected = []
    for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
        labels = words(reply, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(math.exp(float(model(**words(prompt, return_tensors="pt"), labels=labels).loss)))
    scorer = build_scorer({"kind": "perplexity", "model": str(folder)}, CPU).scorer
    assert scorer.perplexities(PROMPTS, REPLIES) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ScorerError, match="scope: both needs a causal model"):
        score({"kind": "perplexity", "model": str(folder), "scope": "both"})


def test_perplexity_of_the_reply_depends_on_the_prompt_and_not_on_its_fluency_alone(tmp_path: Path) -> None:
    scorer = build_scorer({"kind": "perplexity", "model": str(scorer_models.causal(tmp_path / "m"))}, CPU).scorer
    one, other = scorer.perplexities(["I am sad.", "I drink."], ["You are sad.", "You are sad."])
    assert one != pytest.approx(other, rel=1e-3)


def test_without_a_start_token_the_first_token_is_not_scored(tmp_path: Path) -> None:
    folder = scorer_models.causal(tmp_path / "m", start=False)
    scorer = build_scorer({"kind": "perplexity", "model": str(folder), "separator": ""}, CPU).scorer
    assert scorer.perplexities([""], ["sad"]) == [math.inf], "one token and nothing before it: nothing to score"
    assert math.isfinite(scorer.perplexities([""], ["sad boss"])[0])


def test_a_long_prompt_loses_its_start_and_a_long_reply_its_end(tmp_path: Path) -> None:
    folder = scorer_models.causal(tmp_path / "m")
    scorer = build_scorer({"kind": "perplexity", "model": str(folder), "max_length": 16}, CPU).scorer
    long = "boss " * 100
    same = scorer.perplexities([long + "I am sad.", "home " + long + "I am sad."], ["You are sad."] * 2)
    assert same[0] == pytest.approx(same[1], rel=1e-5)
    assert math.isfinite(scorer.perplexities(["I am sad."], [long])[0])
