"""The ids that end a text and begin one: never such that a text runs on without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.bundles.bundle import BASE_DIR
from emorl_core.models.registry import load_model
from tests.core.bases import CPU, edit_config, load, refusal
from tests.supported_models import VOCABULARY, tiny_causal

LAST = 366  # the tiny base's vocabulary has 367 entries
GENERATION = "generation_config.json"


@pytest.fixture
def base(plain_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_bundle / BASE_DIR, tmp_path / "base"))


def write_generation(base: Path, **values: Any) -> Path:
    (base / GENERATION).write_text(json.dumps(values))
    return base


NO_IDS = ["1", "</s>", True, False, 1.0, -1, LAST + 1, 2**63, {}, {"id": 1}]
NO_LISTS = [[], [1, None], [1, "2"], [True], [LAST + 1], [[1]]]


@pytest.mark.parametrize("value", [*NO_IDS, *NO_LISTS])
def test_an_end_of_sequence_that_is_no_id_is_refused(base: Path, value: object) -> None:
    allowed = f"eos_token_id is {value!r}; allowed: a token id from 0 to {LAST}, or a list of them"
    assert refusal(write_generation(base, eos_token_id=value)) == f"{GENERATION}: {allowed}"
    (base / GENERATION).unlink()
    assert refusal(edit_config(base, lambda config: config.update(eos_token_id=value))) == f"config.json: {allowed}"


@pytest.mark.parametrize("key", ["decoder_start_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [*NO_IDS, [], [0]])
def test_a_start_that_is_no_id_is_refused(base: Path, key: str, value: object) -> None:
    allowed = f"{key} is {value!r}; allowed: a token id from 0 to {LAST}"
    assert refusal(write_generation(base, **{key: value})) == f"{GENERATION}: {allowed}"
    (base / GENERATION).unlink()
    assert refusal(edit_config(base, lambda config: config.update({key: value}))) == f"config.json: {allowed}"


def test_a_long_value_is_cut(base: Path) -> None:
    message = refusal(write_generation(base, eos_token_id=[LAST + 1] * 10_000))
    assert len(message) < 200


def test_null_leaves_it_to_the_config(base: Path) -> None:
    edit_config(base, lambda c: c.update(eos_token_id=[5, 1, 5], decoder_start_token_id=4, pad_token_id=3))
    write_generation(base, eos_token_id=None, decoder_start_token_id=None, pad_token_id=None)
    model = load(base)
    assert (model.facts.eos_token_ids, model.start_token_id) == ((5, 1), 4)
    edit_config(base, lambda c: c.update(decoder_start_token_id=None))
    assert load(base).start_token_id == 3
    edit_config(base, lambda c: c.update(pad_token_id=None))
    assert load(base).start_token_id == 0


def test_null_everywhere_would_never_end(base: Path) -> None:
    edit_config(base, lambda config: config.update(eos_token_id=None))
    assert "config.json: eos_token_id is null; allowed" in refusal(write_generation(base, eos_token_id=None))
    (base / GENERATION).unlink()
    assert "config.json: eos_token_id is null; allowed" in refusal(base)


def test_where_no_file_has_the_key_it_is_t5s(base: Path) -> None:
    edit_config(base, lambda config: config.pop("eos_token_id"))
    assert load(write_generation(base)).facts.eos_token_ids == (1,)
    (base / GENERATION).unlink()
    assert load(base).facts.eos_token_ids == (1,)


@pytest.mark.parametrize("value", ["32", True, 0, -3, 2.5, [2]])
@pytest.mark.parametrize("key", ["vocab_size", "d_model", "num_layers", "num_decoder_layers", "num_heads"])
def test_a_size_that_is_no_number_is_refused(base: Path, key: str, value: object) -> None:
    message = refusal(edit_config(base, lambda config: config.update({key: value})))
    assert message == f"config.json: {key} is {value!r}; allowed: a whole number from 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon is '1e-6'; allowed"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon is null; allowed"),
        ({"architectures": "T5ForConditionalGeneration"}, "architectures is 'T5ForConditionalGeneration'; allowed"),
        ({"architectures": [3]}, "architectures is [3]; allowed"),
        ({"feed_forward_proj": ["relu"]}, "feed_forward_proj is ['relu']; allowed"),
        ({"model_type": ["t5"]}, "base model_type is ['t5'], which is not supported"),
    ],
)
def test_a_value_of_another_kind_is_refused(base: Path, change: dict[str, Any], message: str) -> None:
    assert message in refusal(edit_config(base, lambda config: config.update(change)))


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    return tiny_causal(tmp_path / "causal", "llama")


def test_a_decoder_that_no_file_gives_an_end_is_refused(causal: Path) -> None:
    """transformers would take the one of the model's class, whatever the tokenizer ends a text with."""
    edit_config(causal, lambda config: config.pop("eos_token_id"))
    says = f"{causal}: neither config.json nor generation_config.json has eos_token_id, so no text would end; allowed: "
    says += f"a token id from 0 to {VOCABULARY - 1}, or a list of them"
    assert refusal(write_generation(causal, bos_token_id=2)) == says
    (causal / GENERATION).unlink()
    assert refusal(causal) == says
    assert load_model(
        write_generation(causal, eos_token_id=[7, 3]), device=CPU, dtype=torch.float32
    ).facts.eos_token_ids == (7, 3)


@pytest.mark.parametrize("value", [*NO_IDS, *NO_LISTS])
def test_an_end_that_is_no_id_of_a_decoders_is_refused(causal: Path, value: object) -> None:
    allowed = f"allowed: a token id from 0 to {VOCABULARY - 1}, or a list of them"
    assert (
        refusal(write_generation(causal, eos_token_id=value)) == f"{GENERATION}: eos_token_id is {value!r}; {allowed}"
    )
    edit_config(causal, lambda config: config.update(eos_token_id=None))
    assert refusal(write_generation(causal)) == f"config.json: eos_token_id is null; {allowed}"
