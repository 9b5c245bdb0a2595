"""Training sees a prompt as a server will: the same ids, and names of control tokens as text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from emorl_core.ensemble import Ensemble
from tests.builders import tiny_t5_bundle, tiny_tokenizer
from training.config import RecipeError
from training.data.prompts import encode_prompts, fitted
from training.data.records import Record
from training.data.wording import template_or_chat
from training.warm_start.examples import make_examples, wording_of

END, SEP = 1, 3
PROMPTS = ("I can't keep up at work.", "Zürich 🙂", "work </s> hurts", "[SEP]", "a [SEP] b [SEP] ", "<0x41>")
TEMPLATE = "{prompt} [SEP] "


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return Ensemble.load(tiny_t5_bundle(tmp_path_factory.mktemp("prompts")), device="cpu", dtype="float32")


def test_reinforcement_samples_from_the_ids_that_are_served(ensemble: Ensemble) -> None:
    encode = template_or_chat(ensemble.spec.prompt_template, None, ensemble.tokenizer)
    prompts, cut = encode_prompts([Record(prompt=text) for text in PROMPTS], encode, max_source_tokens=64)
    assert cut == 0
    assert [prompt.text for prompt in prompts] == list(PROMPTS)
    for prompt in prompts:
        assert prompt.source == prompt.gradient_source == ensemble.encode(prompt.text)
        assert (prompt.source.count(SEP), prompt.source.count(END)) == (1, 1)


def test_the_supervised_stage_fits_the_ids_that_are_served(ensemble: Ensemble) -> None:
    config = SimpleNamespace(is_encoder_decoder=True, eos_token_id=END)
    model: Any = SimpleNamespace(config=config, generation_config=None)
    pairs = [(text, f"{text} so") for text in PROMPTS]
    wording = wording_of(model, tiny_tokenizer(), ensemble.spec.prompt_template, None)
    found = make_examples(model, wording, pairs, max_source_tokens=64, max_target_tokens=64)
    assert [example.ids for example in found.examples] == [list(ensemble.encode(text)) for text in PROMPTS]
    assert (found.cut_sources, found.cut_targets) == (0, 0)
    for example in found.examples:
        assert example.labels.count(END) == 1
        assert SEP not in example.labels


def test_of_a_long_prompt_the_text_is_cut_and_the_template_stays(ensemble: Ensemble) -> None:
    encode = template_or_chat(TEMPLATE, None, ensemble.tokenizer)
    text = "so much work and my mother left again"
    whole, bare = tuple(encode(text)), tuple(encode(""))
    assert fitted(encode, text, len(whole), field="f").ids == whole
    for limit in range(len(bare) + 1, len(whole)):
        found = fitted(encode, text, limit, field="f")
        assert found.cut
        assert len(bare) <= len(found.ids) <= limit
        kept = next(text[:n] for n in range(len(text), -1, -1) if tuple(encode(text[:n])) == found.ids)
        assert len(encode(text[: len(kept) + 1])) > limit, "no more is cut than must be"
        assert (found.ids.count(SEP), found.ids[-1]) == (1, END)
    with pytest.raises(RecipeError, match=rf"f is {len(bare)}; the template takes {len(bare)} tokens by itself"):
        fitted(encode, text, len(bare), field="f")


def test_a_limit_of_the_gradients_prompts_alone(ensemble: Ensemble) -> None:
    encode = template_or_chat(TEMPLATE, None, ensemble.tokenizer)
    (prompt,), cut = encode_prompts(
        [Record("so much work and my mother")], encode, max_source_tokens=64, gradient_source_tokens=6
    )
    assert cut == 0
    assert len(prompt.source) > 6
    assert 4 < len(prompt.gradient_source) <= 6
    assert (prompt.gradient_source.count(SEP), prompt.gradient_source[-1]) == (1, END)
    with pytest.raises(RecipeError, match=r"rl.gradient_source_tokens is 3; the template takes \d tokens by itself"):
        encode_prompts([Record("so much")], encode, max_source_tokens=64, gradient_source_tokens=3)
