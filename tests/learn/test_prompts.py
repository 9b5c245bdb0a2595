"""Training sees a prompt as a server will: the same ids, and names of control tokens as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emorl_core.bundle import split_template
from emorl_core.ensemble import Ensemble
from tests.builders import tiny_t5_bundle, tiny_tokenizer
from training.data.prompts import encode_prompts
from training.data.records import Record
from training.warm_start import fit as fitting
from training.warm_start.fit import FitSettings, fit

END, SEP = 1, 3
PROMPTS = ("I can't keep up at work.", "Zürich 🙂", "work </s> hurts", "[SEP]", "a [SEP] b [SEP] ", "<0x41>")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return Ensemble.load(tiny_t5_bundle(tmp_path_factory.mktemp("prompts")), device="cpu", dtype="float32")


def test_reinforcement_samples_from_the_ids_that_are_served(ensemble: Ensemble) -> None:
    prompts, _ = encode_prompts(
        [Record(prompt=text) for text in PROMPTS], ensemble.tokenizer, template=ensemble.spec.prompt_template,
        max_source_tokens=64,
    )  # fmt: skip
    assert [prompt.text for prompt in prompts] == list(PROMPTS)
    for prompt in prompts:
        assert prompt.source == prompt.gradient_source == ensemble.encode(prompt.text)
        assert (prompt.source.count(SEP), prompt.source.count(END)) == (1, 1)


def test_the_supervised_stage_fits_the_ids_that_are_served(
    ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, list[int]]] = []

    class Enough(Exception):
        pass

    def trainer(model: Any, tokenizer: Any, examples: list[dict[str, list[int]]], *rest: Any) -> None:
        seen.extend(examples)
        raise Enough

    monkeypatch.setattr(fitting, "_trainer", trainer)
    pairs = [(text, f"{text} so") for text in PROMPTS]
    with pytest.raises(Enough):
        fit(
            None, tiny_tokenizer(), pairs, FitSettings(steps=1, batch_size=len(pairs)),  # type: ignore[arg-type]
            around=split_template(ensemble.spec.prompt_template), work=tmp_path, max_source_tokens=64,
        )  # fmt: skip
    assert sorted(example["input_ids"] for example in seen) == sorted(list(ensemble.encode(text)) for text in PROMPTS)
    for example in seen:
        assert example["labels"].count(END) == 1
        assert SEP not in example["labels"]
