"""Objectives from a sentence: a lane with a prompt of its own and the common reply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from emorl_core.bundles.bundle import (
    ADAPTERS_DIR,
    BASE_DIR,
    BundleSpec,
    ChatSpec,
    ObjectiveSpec,
    PromptSpec,
    read_spec,
    write_spec,
)
from emorl_core.ensemble import Ensemble
from emorl_core.errors import BundleError, InvalidRequest, PromptTooLong
from emorl_core.fake import fake_ensemble
from emorl_core.models.family import Passage
from emorl_core.text.chat import Message
from emorl_core.types import FinishReason
from tests.builders import outdated_peft, tiny_t5_bundle
from tests.chats import TURNS, library, tiny_chat_bundle, tokenizer_of
from tests.core.driving import SENTENCES, alone, completions, drain, failures, joining, mixed_requests, run, said
from tests.supported_models import tiny_causal_adapter

PROMPT = "I can't keep up at work."
BRIEF, WARM = PromptSpec(system="Be brief."), PromptSpec(system="Answer warmly.")
MIXES = (
    {"warm": 1.0},
    {"both": 0.5, "one": 0.2, "base": 0.3},
    {"warm": 1.5, "base": -0.5},
    {"base": 1.0, "both": 0.7, "warm": -0.7},
)


def own_prompts(**prompts: PromptSpec) -> dict[str, ObjectiveSpec]:
    return {name: ObjectiveSpec(prompt=prompt) for name, prompt in prompts.items()}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    objectives = {
        "one": ObjectiveSpec(adapter="adapters/one"),
        "both": ObjectiveSpec(adapter="adapters/both", prompt=BRIEF),
        **own_prompts(warm=WARM),
    }
    folder = tmp_path_factory.mktemp("chatty")
    tiny_chat_bundle(folder, objectives=objectives, profiles={}, default_profile=None)
    (folder / "adapters" / "one").rename(folder / "adapters" / "both")
    tiny_causal_adapter(folder / BASE_DIR, folder / "adapters" / "one", 3, 7, "all-linear")
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_t5_bundle(tmp_path_factory.mktemp("t5"), objectives=("one", "both"), ranks=(2, 4))
    spec = read_spec(folder / "bundle.yaml")
    objectives: dict[str, Any] = {
        "one": spec.objectives["one"],
        "both": ObjectiveSpec(adapter="adapters/both", prompt=PromptSpec(template="briefly: {prompt} [SEP] ")),
        **own_prompts(warm=PromptSpec(template="{prompt} and be warm")),
    }
    write_spec(folder, BundleSpec.model_validate({**spec.model_dump(), "objectives": objectives}))
    return folder


def load(folder: Path, slots: int = 16) -> Ensemble:
    return Ensemble.load(folder, device="cpu", dtype="float32", slots=slots)


def separate(folder: Path, kind: Any) -> dict[str, Any]:
    """Objective -> a model of its own, by Hugging Face and PEFT."""

    def bare() -> Any:
        return kind.from_pretrained(folder / BASE_DIR).eval()

    with outdated_peft():
        adapted = {
            name: PeftModel.from_pretrained(bare(), folder / ADAPTERS_DIR / name).eval() for name in ("one", "both")
        }
    return {"base": bare(), "warm": bare(), **adapted}


@torch.no_grad()
def mixed_greedy(
    models: Mapping[str, Any], prompts: Mapping[str, list[int]], weights: Mapping[str, float], ends: tuple[int, ...]
) -> tuple[int, ...]:
    """A plain loop that mixes the models' last logits, each after its own prompt; mixed logits are mixed states."""
    reply: list[int] = []
    while len(reply) < 8 and not (reply and reply[-1] in ends):
        mixed = torch.zeros(())
        for name, weight in weights.items():
            model, ids = models[name], torch.tensor([prompts[name]])
            if model.config.is_encoder_decoder:
                start = model.config.decoder_start_token_id
                out = model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *reply]]))
            else:
                out = model(input_ids=torch.tensor([[*prompts[name], *reply]]))
            mixed = mixed + weight * out.logits[0, -1]
        reply.append(int(mixed.argmax()))
    return tuple(reply)


@pytest.mark.parametrize("weights", MIXES, ids=str)
def test_against_hf_peft_a_chat_model_told_by_sentences(chatty: Path, weights: dict[str, float]) -> None:
    ensemble, models = load(chatty), separate(chatty, AutoModelForCausalLM)
    user = Message("user", PROMPT)

    def rendered(system: str | None) -> list[int]:
        return library(tokenizer_of(TURNS), [user] if system is None else [Message("system", system), user])

    prompts = {
        "base": rendered(None),
        "one": rendered(None),
        "both": rendered("Be brief."),
        "warm": rendered("Answer warmly."),
    }
    expected = mixed_greedy(models, prompts, weights, ensemble.engine.facts.eos_token_ids)
    done = ensemble.generate(PROMPT, weights=weights, normalize=False, max_new_tokens=8)
    assert done.token_ids == expected
    assert done.prompt_tokens == len(prompts["base"])


@pytest.mark.parametrize("weights", MIXES, ids=str)
def test_against_hf_peft_a_t5_told_by_templates(t5: Path, weights: dict[str, float]) -> None:
    ensemble, models = load(t5), separate(t5, AutoModelForSeq2SeqLM)
    encode = ensemble.tokenizer.encode
    prompts = dict.fromkeys(("base", "one"), encode(f"{PROMPT} [SEP] "))
    prompts |= {"both": encode(f"briefly: {PROMPT} [SEP] "), "warm": encode(f"{PROMPT} and be warm")}
    expected = mixed_greedy(models, prompts, weights, ensemble.engine.facts.eos_token_ids)
    assert ensemble.generate(PROMPT, weights=weights, normalize=False, max_new_tokens=8).token_ids == expected


@pytest.mark.parametrize("kind", ["chatty", "t5"])
def test_alone_equals_in_company_as_it_grows(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    requests = mixed_requests(load(folder), 24, seed=5, longest=10)
    expected = {completion.request_id: said(completion) for completion in alone(load(folder, 1), requests)}
    assert joining(load(folder, 6), requests) == expected
    assert len({completion[0] for completion in expected.values()}) > 12


@pytest.fixture(params=["encoder", "decoder-only", "chatty", "t5"])
def ensemble(request: pytest.FixtureRequest) -> Ensemble:
    """Of four slots; its objectives `warm` and others have prompts of their own."""
    if request.param in ("chatty", "t5"):
        return load(request.getfixturevalue(request.param), 4)
    return fake_ensemble(("one", "empathy"), encoder=request.param == "encoder", prompts=SENTENCES, slots=4)


def test_a_sweep_gives_what_separate_calls_give(ensemble: Ensemble) -> None:
    vectors = [
        {"warm": (i % 4) / 3, "one": (i // 4) / 3, "base": 0.2, ensemble.objectives[1]: 0.1 * (i % 3)}
        for i in range(12)
    ]
    swept = ensemble.sweep([PROMPT, "i drink"], vectors, max_new_tokens=9)
    for item in swept.items:
        prompt = (PROMPT, "i drink")[item.prompt_index]
        assert item.text == ensemble.generate(prompt, weights=vectors[item.weights_index], max_new_tokens=9).text
    assert swept.lane_row_steps < swept.unshared_lane_row_steps


def test_segments_hold_what_a_grid_finds(ensemble: Ensemble) -> None:
    start, end = {"warm": 1.0}, {"one": 0.6, "base": 0.4}
    found = ensemble.sweep_line(PROMPT, start, end, max_new_tokens=6)
    for i in range(11):
        t = i / 10
        weights = {"warm": 1.0 - t, "one": 0.6 * t, "base": 0.4 * t}
        near = [each for each in found.breaks if abs(each - t) < 1e-4]
        if not near:
            assert found.at(t).text == ensemble.generate(PROMPT, weights=weights, max_new_tokens=6).text


def test_attribution_splits_the_margin_over_lanes_with_their_own_prompts(ensemble: Ensemble) -> None:
    weights = {"warm": 0.6, "one": 0.3, "base": 0.1}
    done = ensemble.generate(PROMPT, weights=weights, attribution=True, max_new_tokens=6)
    for each in done.attributions:
        assert sum(each.parts) == pytest.approx(each.margin, abs=1e-4)
        assert [bool(part) for part in each.parts] == [name in weights for name in ensemble.lanes]


def test_cancelled_and_faulty_members_leave_the_others_as_they_are(ensemble: Ensemble) -> None:
    engine = ensemble.engine
    vectors = [{"warm": 1.0}, {"one": 1.0}, {"base": 1.0}, {"warm": 0.5, "base": 0.5}]
    expected = [ensemble.generate(PROMPT, weights=each, max_new_tokens=8).token_ids for each in vectors]
    (group,) = ensemble.sweep_plan([PROMPT], vectors, max_new_tokens=8, min_new_tokens=0).groups()
    engine.add_group(group)
    events = drain(engine, lambda step: engine.cancel(group[0].request_id) if step == 2 else None)
    done = completions(events)
    assert done[group[0].request_id].finish_reason in (FinishReason.CANCELLED, FinishReason.STOP)
    assert [done[each.request_id].token_ids for each in group[1:]] == expected[1:]
    assert (engine.stats.slots_used, engine.stats.lanes_running) == (0, 0)


@pytest.mark.parametrize("encoder", [True, False])
def test_a_lane_whose_prompt_breaks_fails_those_that_use_it_alone(encoder: bool) -> None:
    ensemble = fake_ensemble(("one",), encoder=encoder, prompts={"warm": SENTENCES["warm"]}, slots=4)
    request = ensemble.request(PROMPT, weights={"warm": 1.0}, max_new_tokens=4)
    ensemble.engine.model.poisoned = {request.lane_prompts[2]}  # type: ignore[attr-defined]
    fine = ensemble.request(PROMPT, weights={"one": 0.5, "base": 0.5}, max_new_tokens=4)
    for each in (request, fine):
        ensemble.engine.add(each)
    events = drain(ensemble.engine)
    assert set(failures(events)) == {request.request_id}
    assert set(completions(events)) == {fine.request_id}


def test_lanes_with_the_same_prompt_and_nothing_that_touches_it_share_one_prefill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a llama `base` and a sentence's lane read different prompts, two objectives with one sentence the same; in a T5
    an adapter of the decoder's own layers leaves the prompt as it is."""
    chatty = tiny_chat_bundle(
        tmp_path / "chat", objectives=own_prompts(warm=WARM, same=WARM, brief=BRIEF), profiles={}, default_profile=None
    )
    ensemble = load(chatty)
    ensemble.generate(PROMPT, weights={"warm": 1.0, "same": 1.0, "brief": 1.0, "base": 1.0}, max_new_tokens=3)
    assert ensemble.engine.stats.prefill_misses == 3
    late = {"targets": r"decoder\.block\.\d+\.layer\.0\.SelfAttention\.(q|v)|.*EncDecAttention\.(q|o)"}
    t5 = tiny_t5_bundle(
        tmp_path / "t5",
        objectives=("late", "later", "early"),
        ranks=(2, 3, 4),
        adapter_options={"late": late, "later": late},
    )
    ensemble = load(t5)
    weights = {"late": 1.0, "later": 2.0, "early": 1.0, "base": 1.0}
    done = ensemble.generate(PROMPT, weights=weights, max_new_tokens=8)
    assert ensemble.engine.stats.prefill_misses == 2
    apart = load(t5)
    whole = lambda _, lane, reply: Passage((lane,), len(lane.prompt_ids))  # noqa: E731
    monkeypatch.setattr(type(apart.engine.model), "passage", whole)
    request = apart.request(PROMPT, weights=weights, max_new_tokens=8, seed=done.seed)
    assert said(run(apart.engine, [request])[0]) == said(done)
    assert apart.engine.stats.prefill_misses == 4


def test_a_sentence_takes_the_place_of_the_bundles_system_message_and_follows_a_clients() -> None:
    ensemble = fake_ensemble((), chat=ChatSpec(system="Be kind."), prompts={"warm": WARM})
    text = ensemble.tokenizer.decode
    plain = ensemble.request("hi", weights={"warm": 1.0})
    assert (text(plain.prompt_ids), text(plain.lane_prompts[1])) == (
        "system: Be kind. user: hi",
        "system: Answer warmly. user: hi",
    )
    chat = [Message("system", "You are a nurse."), Message("user", "hi")]
    told = ensemble.request(messages=chat, weights={"warm": 1.0})
    assert text(told.lane_prompts[1]) == "system: You are a nurse.\n\nAnswer warmly. user: hi"
    assert ensemble.request("hi", weights={"base": 1.0}).lane_prompts == ()


def test_what_a_sentence_cannot_do_is_refused_by_name() -> None:
    ensemble = fake_ensemble(("one",), chat=ChatSpec(), prompts={"warm": WARM}, max_source_tokens=40)
    weights = {"warm": 0.5, "one": 0.5}
    for call, message, param in (
        (lambda: ensemble.request("hi", weights=weights, combine="weights"), "objective 'warm' has a prompt of its own", "combine"),
        (lambda: ensemble.sweep("hi", [weights], combine="weights"), "objective 'warm' has a prompt of its own", "combine"),
        (lambda: ensemble.request([5, 6], weights=weights), "which would be left out", "prompt"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match=message) as caught:
            call()
        assert caught.value.param == param
    assert ensemble.request("hi", weights={"one": 1.0}, combine="weights").lane_prompts == ()
    assert ensemble.request([5, 6], weights={"one": 1.0, "base": 1.0})
    long = "work " * 20
    assert ensemble.request(long, weights={"one": 1.0})
    with pytest.raises(PromptTooLong, match="with the prompt of objective 'warm'; allowed: up to 40") as caught:
        ensemble.request(long, weights=weights)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {"warm": {}}}, "objectives.warm: Value error, give adapter, prompt or both"),
        ({"objectives": {"warm": {"prompt": {}}}}, "give exactly one of system and template"),
        ({"objectives": {"warm": {"prompt": {"system": "a", "template": "{prompt}"}}}}, "give exactly one of system"),
        ({"objectives": {"warm": {"prompt": {"system": " "}}}}, "must be a text"),
        ({"objectives": {"warm": {"prompt": {"template": "x"}}}}, "must contain {prompt} exactly once"),
        (
            {"objectives": {"warm": {"prompt": {"system": "x"}}}},
            "objectives.warm.prompt: must be template, for a bundle without",
        ),
        (
            {"chat": {}, "objectives": {"warm": {"prompt": {"template": "{prompt} x"}}}},
            "objectives.warm.prompt: must be system, for a bundle with chat",
        ),
    ],
)
def test_faults_of_a_prompt_in_bundle_yaml_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BundleSpec.model_validate({"name": "x", "base": {"path": "base"}, "objectives": {}, **change})
    shown = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in caught.value.errors())
    assert message in shown


def test_a_sentence_that_the_template_does_not_take_or_that_leaves_no_room_is_refused_at_load(tmp_path: Path) -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
    )
    more: dict[str, Any] = {"objectives": own_prompts(warm=WARM), "profiles": {}, "default_profile": None}
    with pytest.raises(BundleError, match="System role not supported") as caught:
        load(tiny_chat_bundle(tmp_path / "a", template=refusing, **more))
    assert caught.value.param == "objectives.warm.prompt.system"
    with pytest.raises(BundleError, match="the prompt of objective 'warm' takes 43 tokens by itself"):
        load(tiny_chat_bundle(tmp_path / "b", template=TURNS, max_source_tokens=30, **more))
