"""Warm start on a model of a few thousand parameters."""

from __future__ import annotations

import json
import logging
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tests.builders import tiny_t5
from tests.modes import closed_files
from training.data.records import Record
from training.data.synthetic.grammar import generate
from training.progress import FitProgress
from training.warm_start.errors import FitError
from training.warm_start.fit import FitSettings, last_checkpoint, plan_order
from training.warm_start.scratch_t5 import ScratchSettings, new_model
from training.warm_start.tokenizer import train_tokenizer
from training.warm_start.warm_start import WarmStartSettings, warm_start

TEMPLATE = "{prompt} [SEP] "
SHAPE = ScratchSettings(vocab_size=800, d_model=32, d_ff=32, heads=4, layers=1, decoder_layers=1)


def fit_settings(**values: object) -> FitSettings:
    return FitSettings.model_validate(
        {"steps": 16, "batch_size": 8, "learning_rate": 2e-2, "warmup_steps": 2, "checkpoint_every": 4, **values}
    )


def settings(**fit: object) -> WarmStartSettings:
    return WarmStartSettings(prompt_template=TEMPLATE, scratch=SHAPE, fit=fit_settings(**fit))


@pytest.fixture(scope="module")
def records() -> tuple[Record, ...]:
    return generate(80, seed=1)


@pytest.fixture(scope="module")
def warm(records: tuple[Record, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warm_start(records, tmp_path_factory.mktemp("warm") / "base", settings(), device="cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def same(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def killed_at(step: int) -> FitProgress:
    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise Killed

    return progress


def note_first(seen: list[int]) -> FitProgress:
    def progress(done: int, total: int, loss: float) -> None:
        seen.append(done)
        raise Killed

    return progress


def test_it_learns_and_writes_a_folder_that_transformers_loads(warm: Path) -> None:
    receipt = json.loads((warm / "warm_start.json").read_text())
    assert receipt["losses"][-1] < receipt["losses"][0] - 1.0
    assert all(math.isfinite(loss) for loss in receipt["losses"])
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(warm), AutoTokenizer.from_pretrained(warm)
    assert model.config.decoder_start_token_id == 0
    assert model.config.vocab_size == len(tokenizer)
    assert next(model.parameters()).dtype == torch.float32
    assert {path.suffix for path in warm.iterdir()} == {".json", ".safetensors"}
    assert closed_files(warm) == []
    assert sorted(path.name for path in warm.parent.iterdir()) == ["base"]  # nothing of the way there is left


def test_a_run_killed_twice_ends_with_the_same_bits(records: tuple[Record, ...], warm: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    for step in (6, 11):  # checkpoints are at 4 and 8
        with pytest.raises(Killed):
            warm_start(records, out, settings(), device="cpu", progress=killed_at(step))
        assert not out.exists()
    seen: list[int] = []
    warm_start(records, out, settings(), device="cpu", progress=lambda done, total, loss: seen.append(done))
    assert seen[0] == 9
    assert same(out, warm)


def test_dropout_goes_on_where_it_was(records: tuple[Record, ...], tmp_path: Path) -> None:
    wet = WarmStartSettings(
        prompt_template=TEMPLATE, scratch=SHAPE.model_copy(update={"dropout": 0.2}), fit=fit_settings(steps=8)
    )
    whole = warm_start(records, tmp_path / "whole", wet, device="cpu")
    with pytest.raises(Killed):
        warm_start(records, tmp_path / "parts", wet, device="cpu", progress=killed_at(6))
    assert same(warm_start(records, tmp_path / "parts", wet, device="cpu"), whole)


def test_a_checkpoint_cut_short_is_passed_over(records: tuple[Record, ...], warm: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    with pytest.raises(Killed):
        warm_start(records, out, settings(), device="cpu", progress=killed_at(11))
    work = tmp_path / ".base.partial"
    newest = last_checkpoint(work)
    assert newest is not None
    assert newest.name == "checkpoint-8"
    (newest / "trainer_state.json").unlink()  # transformers writes it last
    assert same(warm_start(records, out, settings(), device="cpu"), warm)


def test_other_settings_or_data_do_not_continue_a_run(records: tuple[Record, ...], tmp_path: Path) -> None:
    for name, changed, data in (("a", settings(learning_rate=5e-3), records), ("b", settings(), records[:60])):
        with pytest.raises(Killed):
            warm_start(records, tmp_path / name, settings(), device="cpu", progress=killed_at(5))
        first: list[int] = []
        with pytest.raises(Killed):
            warm_start(data, tmp_path / name, changed, device="cpu", progress=note_first(first))
        assert first == [1]


def test_it_starts_from_a_folder_too(records: tuple[Record, ...], tmp_path: Path) -> None:
    tiny_t5(tmp_path / "tiny")
    start = WarmStartSettings(prompt_template=TEMPLATE, path="tiny", fit=fit_settings(steps=4, batch_size=4))
    out = warm_start(records[:20], tmp_path / "out", start, base=tmp_path, device="cpu")
    assert weights(out).keys() == weights(tmp_path / "tiny").keys()
    assert not same(out, tmp_path / "tiny")
    assert "tiny" not in (out / "warm_start.json").read_text()  # no path of this machine
    assert (
        AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(tmp_path / "tiny").get_vocab()
    )


def test_training_leaves_the_callers_random_state_and_terminal_alone(
    records: tuple[Record, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.enable_progress_bar()  # as a user has them; other tests may have switched them off
    transformers_logging.set_verbosity_warning()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    capfd.readouterr()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warm_start(records[:20], tmp_path / "base", settings(steps=2), device="cpu")
    assert transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.get_verbosity() == logging.WARNING
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in caught] == []
    assert caplog.records == []
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_the_order_is_whole_passes_in_batches_of_like_length() -> None:
    lengths = [(5 + index % 17, 3 + index % 5) for index in range(640)]
    order = plan_order(lengths, steps=40, batch_size=16, seed=4)
    assert sorted(order) == list(range(640))  # one pass, every example once
    spread = [max(lengths[i][0] for i in order[n : n + 16]) - min(lengths[i][0] for i in order[n : n + 16])
              for n in range(0, 640, 16)]  # fmt: skip
    assert sum(spread) / len(spread) < 3  # of 16 in unsorted batches
    firsts = [lengths[order[n]][0] for n in range(0, 640, 16)]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)
    assert order == plan_order(lengths, steps=40, batch_size=16, seed=4)
    assert order != plan_order(lengths, steps=40, batch_size=16, seed=5)
    assert sorted(plan_order(lengths[:10], steps=5, batch_size=4, seed=0)) == sorted([*range(10), *range(10)])


def test_a_copying_start_finds_the_word_after_the_one_just_written() -> None:
    """Untrained, the decoder's cross-attention already looks at the source word that follows the last target word."""
    records = generate(200, seed=3)
    tokenizer = train_tokenizer([record.prompt for record in records], vocab_size=800, whole_tokens=("[SEP]",))
    shape = ScratchSettings(vocab_size=800, d_model=128, d_ff=64, heads=4)
    ids = torch.randperm(len(tokenizer) - 300, generator=torch.Generator().manual_seed(0))[:12][None] + 300
    hits = {}
    for copying in (True, False):
        model = new_model(shape.model_copy(update={"copying": copying}), tokenizer, seed=0).eval()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            out = model(input_ids=ids, decoder_input_ids=ids[:, :-1], output_attentions=True)
        looked = out.cross_attentions[0].mean(1)[0].argmax(-1)  # [T]
        hits[copying] = (looked == torch.arange(1, 12)).float().mean().item()
    assert hits[True] > 0.8
    assert hits[False] < 0.4


def test_a_new_model_is_the_same_for_the_same_seed() -> None:
    tokenizer = train_tokenizer(["a few words"], vocab_size=800)
    one, again, other = (new_model(SHAPE, tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["shared.weight"], other["shared.weight"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of hub, path and scratch"),
        ({"hub": "a/b", "path": "c"}, "exactly one of hub, path and scratch"),
        ({"path": "c", "revision": "main"}, "revision goes with hub"),
        ({"path": "c", "prompt_template": "no place"}, r"must contain \{prompt\} exactly once"),
        ({"path": "c", "fit": {"step": 3}}, "unknown key 'step' .*did you mean 'steps'"),
        ({"scratch": {"d_model": 100, "heads": 3}}, "d_model 100 is no multiple of heads 3"),
    ],
)
def test_bad_settings_are_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WarmStartSettings.model_validate({"prompt_template": TEMPLATE, **values})


def test_bad_input_is_one_line_and_writes_nothing(records: tuple[Record, ...], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    cases = [
        (records, "there", settings(), r"out is 'there', which exists; name a new folder or pass overwrite"),
        ([*records[:2], Record("I drink.", where="file.csv:7")], "a", settings(), r"file.csv:7 has no reply"),
        ([], "b", settings(), r"there is no pair of prompt and reply to train on"),
        (records, "c", WarmStartSettings(prompt_template=TEMPLATE, path="nowhere"), r"base 'nowhere' cannot be loaded"),
    ]
    for data, out, start, message in cases:
        with pytest.raises(FitError, match=message) as raised:
            warm_start(data, tmp_path / out, start, base=tmp_path, device="cpu")
        assert "\n" not in raised.value.message
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["there"]


def test_a_base_to_start_from_has_its_tokenizer_and_plain_weights(records: tuple[Record, ...], tmp_path: Path) -> None:
    base = tiny_t5(tmp_path / "tiny")
    start = WarmStartSettings(prompt_template=TEMPLATE, path="tiny", fit=fit_settings(steps=1, batch_size=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(FitError, match="the tokenizer knows no words"):
        warm_start(records, tmp_path / "out", start, base=tmp_path, device="cpu")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(FitError, match=r"the weights are quantised \('awq'\)"):
        warm_start(records, tmp_path / "out", start, base=tmp_path, device="cpu")


def test_a_loss_that_is_not_finite_stops_with_the_step(records: tuple[Record, ...], tmp_path: Path) -> None:
    wild = settings(learning_rate=1e20, warmup_steps=0, max_gradient_norm=1e9)
    with pytest.raises(FitError, match=r"the loss is not finite at step \d+; lower learning_rate \(1e\+20\)"):
        warm_start(records, tmp_path / "base", wild, device="cpu")
    assert not (tmp_path / "base").exists()
