"""Activated LoRA against PEFT: adapters that act from their invocation tokens on, over a prefill that lanes share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from emorl_core.adapters.adapter import read_peft
from emorl_core.adapters.writer import write_peft
from emorl_core.cache.prefix import common
from emorl_core.errors import AdapterError, InvalidRequest
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.causal.reading import activation_start
from emorl_core.models.registry import adapter_task
from tests.core.causal_reference import SeparateModels, index_of, lockstep, named_lanes, opened
from tests.core.driving import read_whole
from tests.core.test_causal_golden import loaded
from tests.supported_models import tiny_causal, tiny_causal_adapter

TURN = (33, 60)
PROMPTS = (
    (5, 9, 71, 8, 33, 60, 14),  # a token after the invocation
    (5, 33, 60, 71, 8, 14, 33, 60),  # twice: the last counts
    (33, 60),  # nothing before it
    (5, 9, 71, 33),  # only its beginning: never active
    (33, 60, 5, 9),
)
MIXES = torch.tensor(
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.4, 0.2, 0.2, 0.2], [-0.5, 1.5, 0.0, 0.0]]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("activated")
    base = tiny_causal(folder / "base", "qwen2")
    return base, [
        tiny_causal_adapter(base, folder / "one", 4, 1, "all-linear", alora_invocation_tokens=list(TURN)),
        tiny_causal_adapter(base, folder / "two", 2, 2, ("q_proj", "down_proj"), alora_invocation_tokens=[60]),
        tiny_causal_adapter(base, folder / "plain", 3, 3, "all-linear"),
    ]


@pytest.fixture(scope="module")
def model(made: tuple[Path, list[Path]]) -> CausalModel:
    return loaded(*made)


def test_against_peft_tokens_and_logits(made: tuple[Path, list[Path]], model: CausalModel) -> None:
    """One-hot weights and mixes, activated adapters beside a plain one, in one batch."""
    judge = SeparateModels(*made)
    tokens, logits = lockstep(model, PROMPTS, MIXES, 8)
    for prompt, found, steps in zip(PROMPTS, tokens, logits, strict=True):
        expected, expected_steps = judge.greedy(prompt, MIXES, 8)
        assert found.tolist() == expected.tolist()
        torch.testing.assert_close(steps, expected_steps, atol=1e-4, rtol=0.0)


def test_against_peft_generate(made: tuple[Path, list[Path]], model: CausalModel) -> None:
    """The library's own loop, with its cache: what the reply says does not move the beginning."""
    judge = SeparateModels(*made)
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0)
    for lane in (1, 2):
        one_hot = torch.zeros(1, 4)
        one_hot[0, lane] = 1.0
        tokens, _ = lockstep(model, PROMPTS, one_hot, 8)
        for prompt, found in zip(PROMPTS, tokens[:, 0].tolist(), strict=True):
            ids = torch.tensor([prompt])
            out = judge.models[lane].generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
            reply = out[0, len(prompt) :].tolist()
            assert reply
            assert found[: len(reply)] == reply  # it ends at the end of sequence


def test_lanes_share_the_prompt_up_to_the_invocation(model: CausalModel) -> None:
    prompt = (5, 9, 71, 8, 33, 60)
    bare, one, two, plain = named_lanes(model, prompt)
    passages = {lane: model.passage(lane, ()).labels for lane in (bare, one, two, plain)}
    assert [model.unread(lane, ()) for lane in (bare, one, two, plain)] == [(60,)] * 4
    assert {len(passage) for passage in passages.values()} == {5}
    assert [common(passages[bare], passages[lane]) for lane in (bare, one, two, plain)] == [5, 4, 5, 0]
    assert model.reading(one).untouched
    assert model.reading(two).untouched
    assert not model.reading(plain).untouched
    same_turn = Lane((0.5, 0.0, 0.0), prompt), Lane((-2.0, 0.0, 0.0), prompt)
    assert {common(model.passage(lane, ()).labels, passages[one]) for lane in same_turn} == {4}


def test_an_adapter_that_is_never_invoked_is_the_base(model: CausalModel) -> None:
    bare, one, two, plain = named_lanes(model, (5, 9, 71))
    assert model.acting(one) == model.acting(two) == bare.coefficients
    assert model.acting(plain) == plain.coefficients
    assert model.passage(one, (7, 8)) == model.passage(two, (7, 8)) == model.passage(bare, (7, 8))
    assert model.acting(Lane((0.5, 0.25, 2.0), (5, 60, 71))) == (0.0, 0.25, 2.0)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("point", [(0.5, 0.8, 0.0), (0.4, 0.0, -0.7), (0.3, 0.6, 0.9)])
def test_against_peft_a_mix_in_weight_space(
    point: tuple[float, ...], prompt: tuple[int, ...], made: tuple[Path, list[Path]], model: CausalModel
) -> None:
    """Adapters that begin at different tokens, and a plain one, summed in one lane: each layer is the base's plus the
    sum of what PEFT's three models add to it."""
    lane = Lane(point, prompt)
    cache, last = opened(model, [lane])
    found = model.step(torch.tensor([last]), index_of(model, [lane]), cache)[0, 0]
    base, folders = made
    judge = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    for (name, layer), tokens in ((pair, len(prompt)) for pair in dict(judge.model.named_modules()).items()):
        if isinstance(layer, torch.nn.Linear):
            updates = []
            for coefficient, folder, invocation in zip(point, folders, (TURN, (60,), None), strict=True):
                start = 0 if invocation is None else activation_start(prompt, invocation)
                pair = read_peft(folder, "x").modules.get(f"model.{name}")
                if pair is not None and start is not None:
                    updates.append((start, coefficient * pair.delta()))
            layer.register_forward_hook(adding(updates, tokens))
    with torch.no_grad():
        expected = judge.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)


def adding(updates: list[tuple[int, torch.Tensor]], tokens: int) -> Callable[..., torch.Tensor]:
    def hook(module: object, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        at = torch.arange(tokens).view(1, -1, 1)
        for start, delta in updates:
            out = out + (at >= start) * (args[0] @ delta.t())
        return out

    return hook


def test_an_empty_prompt_is_refused(model: CausalModel) -> None:
    with pytest.raises(InvalidRequest, match="the prompt is empty; allowed: one token at least"):
        read_whole(model, named_lanes(model, ()))


@pytest.mark.parametrize(
    ("prompt", "invocation", "start"),
    [
        ((1, 2, 3), (2, 3), 1),
        ((2, 3, 2, 3), (2, 3), 2),
        ((2, 2, 2), (2, 2), 1),
        ((1, 2), (2, 3), None),
        ((3,), (3,), 0),
        ((3,), (3, 3), None),
        ((), (3,), None),
    ],
)
def test_the_last_occurrence_begins(prompt: tuple[int, ...], invocation: tuple[int, ...], start: int | None) -> None:
    assert activation_start(prompt, invocation) == start


@pytest.mark.parametrize("tokens", [[], "33", [33, "60"], [-1], [True], [1.0], {"a": 1}])
def test_invocation_tokens_that_are_none(tokens: object, made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    source = made[1][0]
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": tokens}))
    with pytest.raises(AdapterError, match=r"alora_invocation_tokens is .*; allowed: a list of token ids"):
        read_peft(tmp_path, "one")


def test_activated_adapters_of_a_model_with_an_encoder(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """T5's decoder never reads the prompt's tokens, so there is nothing to begin at."""
    for file in made[1][0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for task in ("SEQ_2_SEQ_LM", None):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"task_type": task}))
        with pytest.raises(AdapterError, match=f"task_type is {task!r}; allowed: CAUSAL_LM"):
            read_peft(tmp_path, "one")


def test_against_peft_what_we_write_is_still_activated(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, folders = made
    write_peft(read_peft(folders[0], "one"), tmp_path / "written")
    assert read_peft(tmp_path / "written", "one").invocation_tokens == TURN
    ours, theirs = (SeparateModels(base, [folder]) for folder in (tmp_path / "written", folders[0]))
    ids = torch.tensor([PROMPTS[0]])
    torch.testing.assert_close(ours.hidden_of(1, ids, ids.shape[1]), theirs.hidden_of(1, ids, ids.shape[1]))


def test_a_written_adapter_keeps_its_task_or_takes_that_of_its_base(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """Plain LoRA of a decoder: PEFT wraps it as what it is."""
    base, folders = made
    plain = read_peft(folders[2], "plain")
    for number, (adapter, task) in enumerate(((plain, None), (replace(plain, task=None), adapter_task(base)))):
        write_peft(adapter, tmp_path / str(number), task=task)
        written = json.loads((tmp_path / str(number) / "adapter_config.json").read_text(encoding="utf-8"))
        assert written["task_type"] == "CAUSAL_LM"
